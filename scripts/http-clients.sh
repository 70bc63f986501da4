#!/usr/bin/env bash
# The HTTP clients that tests/clients tries: httpx, websockets and grpcio (PyPI), in a virtual environment in the cache. Prints its folder. Quick when
# everything is there. curl comes by setup.sh.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/../tests/clients" && pwd)
as_root() { if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi; }

if [ -n "${GODWIT_CACHE:-}" ]; then cache=$GODWIT_CACHE
elif [ "$(id -u)" -eq 0 ]; then cache=/var/cache/godwit
else cache=$HOME/.cache/godwit; fi
venv=$cache/http-clients
mkdir -p "$cache"

if ! python3 -c 'import ensurepip' >/dev/null 2>&1; then
  echo "setup: installing python3-venv" >&2
  as_root apt-get update -qq >&2
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3-venv >&2
fi

if ! cmp -s "$here/requirements.txt" "$venv/requirements.txt"; then
  echo "setup: fetching httpx, websockets and grpcio" >&2
  rm -rf "$venv"
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check --only-binary=:all: -r "$here/requirements.txt" >&2
  cp "$here/requirements.txt" "$venv/requirements.txt"
fi
echo "$venv"
