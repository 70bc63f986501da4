#!/usr/bin/env bash
# Every test, with cargo-nextest where it is installed (parallel across crates) and plain cargo test elsewhere. Without arguments the
# dashboard in a browser too, beside the others: it waits more than it computes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/memory.sh
# Without doc tests: no code stands in the docs (tests/tidy.rs).
targets=(--workspace --lib --bins --tests)
if ! cargo nextest --version >/dev/null 2>&1; then
  cargo test "${targets[@]}" "$@"
  [ $# -gt 0 ] || scripts/test-browser.sh tested
  exit
fi

if [ $# -eq 0 ]; then
  cargo nextest run --profile whole "${targets[@]}" --no-run
  # In the foreground: it may ask for a password.
  scripts/test-browser.sh prepare
  browsed=$(mktemp)
  # A group of its own: Ctrl-C does not reach what runs beside, and all of it has to end.
  set -m
  scripts/test-browser.sh tested >"$browsed" 2>&1 &
  browser=$!
  set +m
  trap 'kill -- -$browser 2>/dev/null; exit 130' INT TERM
fi
status=0
# In thirds of a core: .config/nextest.toml.
cargo nextest run --profile whole --test-threads $((3 * $(nproc))) "${targets[@]}" "$@" || status=$?
[ $status -ne 0 ] || scripts/check-flaky.py "${CARGO_TARGET_DIR:-target}/nextest/whole/junit.xml" || status=$?
if [ $# -eq 0 ]; then
  wait $browser && again='' || again=yes
  cat "$browsed"
  rm "$browsed"
  if [ -n "$again" ]; then
    echo "the dashboard's tests failed beside the others: once more, alone" >&2
    scripts/test-browser.sh tested || status=1
  fi
fi
exit $status
