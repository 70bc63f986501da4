#!/usr/bin/env bash
# The HTTP clients that tests/clients tries: httpx, websockets and grpcio (PyPI), in a virtual environment in the cache. Prints its folder. Quick when
# everything is there. curl comes by setup.sh.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/../tests/clients" && pwd)
. "$(dirname "${BASH_SOURCE[0]}")/cache.sh"

venv=$cache/http-clients
python_environment "$venv" "httpx, websockets and grpcio" <"$here/requirements.txt"
echo "$venv"
