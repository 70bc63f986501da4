#!/bin/bash
# Runs fuzz targets one after the other with libFuzzer, each for so many seconds, and prints what each did.
#
#   scripts/fuzz.sh SECONDS [FOLDER] [TARGET…]        FOLDER has Cargo.toml, seeds/TARGET/*; default replicator/fuzz
#
# Needs only the pinned stable toolchain: coverage comes from LLVM's own pass, by compiler flags. (With cargo-fuzz and a nightly,
# `cargo fuzz run TARGET` in the folder works as well and adds the address sanitizer.) What is found on the way stays in
# FOLDER/corpus, an input that fails in FOLDER/artifacts; put such a one into FOLDER/found/TARGET: tests run it ever after.
set -euo pipefail
seconds=${1:?how many seconds for each target}
folder=$(realpath "${2:-$(dirname "$0")/../replicator/fuzz}")
shift $(($# > 2 ? 2 : $#))
cd "$folder"
targets=("$@")
if [ ${#targets[@]} -eq 0 ]; then
  mapfile -t targets < <(sed -n 's/^name = "\(.*\)"$/\1/p' Cargo.toml | tail -n +2)
fi
host=$(rustc -vV | sed -n 's/^host: //p')
# Only with --target the flags stay away from build scripts and macros.
export RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Ccodegen-units=1 -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares"
cargo build --release --quiet --target "$host" --target-dir target
failed=0
for target in "${targets[@]}"; do
  mkdir -p "corpus/$target" "artifacts/$target"
  log="artifacts/$target.log"
  result=clean
  "target/$host/release/$target" -max_total_time="$seconds" -print_final_stats=1 -rss_limit_mb=1024 -malloc_limit_mb=256 \
    -timeout=10 -artifact_prefix="artifacts/$target/" "corpus/$target" "seeds/$target" > "$log" 2>&1 || result=FAILED
  runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
  covered=$(grep -oE 'cov: [0-9]+' "$log" | tail -1)
  printf '%-16s %5s s  %12s executions  %-12s %s\n' "$target" "$seconds" "${runs:-?}" "${covered:-cov: ?}" "$result"
  if [ "$result" = FAILED ]; then
    failed=1
    tail -n 30 "$log"
  fi
done
exit $failed
