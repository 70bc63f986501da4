#!/usr/bin/env bash
# What `make test-http-suite` needs: nghttpd (Debian's nghttp2-server) and httpwg's cases of HTTP/2 (crate httpwg-cli, built into the cache). Prints
# the suite's program. Quick when everything is there.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/cache.sh"

version=0.2.5
suite=$cache/httpwg-$version

command -v nghttpd >/dev/null 2>&1 || install_packages nghttp2-server

if [ ! -x "$suite/bin/httpwg" ]; then
  echo "setup: building httpwg (crate httpwg-cli $version)" >&2
  cargo install --quiet --locked --debug --root "$suite" "httpwg-cli@$version" >&2
fi
echo "$suite/bin/httpwg"
