#!/usr/bin/env bash
# Every test, with cargo-nextest where it is installed (parallel across crates) and plain cargo test elsewhere. Without arguments the
# dashboard in a browser too, afterwards: beside the others its pages are too slow.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/memory.sh
# Without doc tests: no code stands in the docs (tests/tidy.rs).
targets=(--workspace --lib --bins --tests)
if cargo nextest --version >/dev/null 2>&1; then
  # In thirds of a core (.config/nextest.toml), one more for each two cores: with none to spare, a sixth of the machine stands still.
  cargo nextest run --profile whole --test-threads $((7 * $(nproc) / 2)) "${targets[@]}" "$@"
  scripts/check-flaky.py "${CARGO_TARGET_DIR:-target}/nextest/whole/junit.xml"
else
  cargo test "${targets[@]}" "$@"
fi
[ $# -gt 0 ] || scripts/test-browser.sh tested
