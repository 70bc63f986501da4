#!/usr/bin/env bash
# The drivers that tests/drivers tries: psycopg and asyncpg (PyPI, in a virtual environment), node-postgres (npm), and JDBC (Debian's
# package, unpacked). Prints the folder of what is kept in the cache: venv/ and jdbc/. Java and Node.js come as Debian's packages, where missing.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/../tests/drivers" && pwd)
. "$(dirname "${BASH_SOURCE[0]}")/cache.sh"

drivers=$cache/postgres-drivers
mkdir -p "$drivers"

packages=()
command -v javac >/dev/null 2>&1 || packages+=(default-jdk-headless)
command -v node >/dev/null 2>&1 || packages+=(nodejs)
command -v npm >/dev/null 2>&1 || packages+=(npm)
[ ${#packages[@]} -eq 0 ] || install_packages "${packages[@]}"

python_environment "$drivers/venv" "psycopg and asyncpg" <"$here/requirements.txt"

if [ ! -e "$drivers/jdbc/postgresql.jar" ]; then
  echo "setup: fetching JDBC (Debian's libpostgresql-jdbc-java)" >&2
  work=$(mktemp -d "$drivers/.jdbc-XXXXXX")
  trap 'rm -rf "$work"' EXIT
  cd "$work"
  download_packages libpostgresql-jdbc-java
  dpkg -x libpostgresql-jdbc-java_*.deb unpacked
  mkdir -p "$drivers/jdbc"
  cp -L unpacked/usr/share/java/postgresql.jar "$drivers/jdbc/postgresql.jar"
fi

cd "$here"
if [ ! -e node_modules/.package-lock.json ] || [ package-lock.json -nt node_modules/.package-lock.json ]; then
  npm ci --no-audit --no-fund --silent >&2
fi
echo "$drivers"
