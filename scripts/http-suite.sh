#!/usr/bin/env bash
# What `make test-http-suite` needs: nghttpd (Debian's nghttp2-server) and httpwg's cases of HTTP/2 (crate httpwg-cli, built into the cache). Prints
# the suite's program. Quick when everything is there.
set -euo pipefail
as_root() { if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi; }

if [ -n "${GODWIT_CACHE:-}" ]; then cache=$GODWIT_CACHE
elif [ "$(id -u)" -eq 0 ]; then cache=/var/cache/godwit
else cache=$HOME/.cache/godwit; fi
version=0.2.5
suite=$cache/httpwg-$version

if ! command -v nghttpd >/dev/null 2>&1; then
  echo "setup: installing nghttp2-server" >&2
  as_root apt-get update -qq >&2
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends nghttp2-server >&2
fi

if [ ! -x "$suite/bin/httpwg" ]; then
  echo "setup: building httpwg (crate httpwg-cli $version)" >&2
  cargo install --quiet --locked --debug --root "$suite" "httpwg-cli@$version" >&2
fi
echo "$suite/bin/httpwg"
