#!/usr/bin/env bash
# Every test, with cargo-nextest where it is installed (parallel across crates) and plain cargo test elsewhere.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if cargo nextest --version >/dev/null 2>&1; then
  cargo nextest run --workspace "$@"
  cargo test --workspace --doc --quiet
else
  cargo test --workspace "$@"
fi
