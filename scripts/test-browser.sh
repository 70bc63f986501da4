#!/usr/bin/env bash
# The dashboard in a real Chromium against a real node. First argument `screenshots`: makes docs/images instead; `prepare`: fetches
# what is needed for it, and no more; `tested`: of the program that the other tests have built.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scripts/setup.sh browser
cd tests/browser
if [ ! -e node_modules/.package-lock.json ] || [ package-lock.json -nt node_modules/.package-lock.json ]; then
  PLAYWRIGHT_SKIP_BROWSER_DOWNLOAD=1 npm ci --no-audit --no-fund --silent
fi
if [ "${1:-}" = prepare ]; then exit; fi
target=$(cargo metadata --format-version 1 --no-deps --offline | python3 -c 'import json,sys; print(json.load(sys.stdin)["target_directory"])')
if [ "${1:-}" = tested ]; then
  GODWIT=${GODWIT:-$target/debug/godwit-under-test}
elif [ -z "${GODWIT:-}" ]; then
  cargo build --package godwit
  GODWIT=$target/debug/godwit
fi
export GODWIT
if [ "${1:-}" = screenshots ]; then exec node screenshots.mjs; fi
exec node --test --test-timeout=420000 --test-reporter=spec dashboard.test.mjs
