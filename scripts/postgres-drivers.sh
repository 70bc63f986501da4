#!/usr/bin/env bash
# The drivers that tests/drivers tries: psycopg and asyncpg (PyPI, in a virtual environment), node-postgres (npm), and JDBC (Debian's
# package, unpacked). Prints the folder of what is kept in the cache: venv/ and jdbc/. Java and Node.js come as Debian's packages, where missing.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/../tests/drivers" && pwd)
as_root() { if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi; }

if [ -n "${GODWIT_CACHE:-}" ]; then cache=$GODWIT_CACHE
elif [ "$(id -u)" -eq 0 ]; then cache=/var/cache/godwit
else cache=$HOME/.cache/godwit; fi
drivers=$cache/postgres-drivers
mkdir -p "$drivers"

packages=()
command -v javac >/dev/null 2>&1 || packages+=(default-jdk-headless)
command -v node >/dev/null 2>&1 || packages+=(nodejs)
command -v npm >/dev/null 2>&1 || packages+=(npm)
python3 -c 'import ensurepip' >/dev/null 2>&1 || packages+=(python3-venv)
if [ ${#packages[@]} -gt 0 ]; then
  echo "setup: installing ${packages[*]}" >&2
  as_root apt-get update -qq >&2
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" >&2
fi

if ! cmp -s "$here/requirements.txt" "$drivers/venv/requirements.txt"; then
  echo "setup: fetching psycopg and asyncpg" >&2
  rm -rf "$drivers/venv"
  python3 -m venv "$drivers/venv"
  "$drivers/venv/bin/pip" install --quiet --disable-pip-version-check --only-binary=:all: -r "$here/requirements.txt" >&2
  cp "$here/requirements.txt" "$drivers/venv/requirements.txt"
fi

if [ ! -e "$drivers/jdbc/postgresql.jar" ]; then
  echo "setup: fetching JDBC (Debian's libpostgresql-jdbc-java)" >&2
  work=$(mktemp -d "$drivers/.jdbc-XXXXXX")
  trap 'rm -rf "$work"' EXIT
  cd "$work"
  apt-get -o APT::Sandbox::User=root -qq download libpostgresql-jdbc-java >&2 || {
    as_root apt-get update -qq >&2
    apt-get -o APT::Sandbox::User=root -qq download libpostgresql-jdbc-java >&2
  }
  dpkg -x libpostgresql-jdbc-java_*.deb unpacked
  mkdir -p "$drivers/jdbc"
  cp -L unpacked/usr/share/java/postgresql.jar "$drivers/jdbc/postgresql.jar"
fi

cd "$here"
if [ ! -e node_modules/.package-lock.json ] || [ package-lock.json -nt node_modules/.package-lock.json ]; then
  npm ci --no-audit --no-fund --silent >&2
fi
echo "$drivers"
