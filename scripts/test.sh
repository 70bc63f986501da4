#!/usr/bin/env bash
# Every test, with cargo-nextest where it is installed (parallel across crates) and plain cargo test elsewhere.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/memory.sh
if cargo nextest --version >/dev/null 2>&1; then
  # In thirds of a core: .config/nextest.toml.
  cargo nextest run --profile whole --test-threads $((3 * $(nproc))) --workspace "$@"
  scripts/check-flaky.py "${CARGO_TARGET_DIR:-target}/nextest/whole/junit.xml"
  cargo test --workspace --doc --quiet
else
  cargo test --workspace "$@"
fi
