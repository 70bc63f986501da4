#!/usr/bin/env bash
# schemathesis against the API's own description, on a node with two real zones under load: api-fuzz.sh [EXAMPLES].
# No answer may be a server error, and none may be one that the description does not have.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/cache.sh
examples=${1:-100}

python_environment "$cache/schemathesis" schemathesis <<<'schemathesis>=4,<5'

cargo build --quiet --package godwit
said=$(mktemp)
target/debug/godwit demo --calm --rate 20 >"$said" 2>&1 &
node=$!
stop() {
  kill -INT "$node" 2>/dev/null || true
  wait "$node" || true
  rm -f "$said" "${settings:-}"
}
trap stop EXIT
deadline=$((SECONDS + 120))
until grep -q 'nothing moves by itself' "$said"; do
  if ! kill -0 "$node" 2>/dev/null || [ $SECONDS -gt $deadline ]; then
    echo "api-fuzz: the node did not start:" >&2
    cat "$said" >&2
    exit 1
  fi
  sleep 0.2
done
url=$(sed -n 's/.*dashboard: \(http[^ ]*\).*/\1/p' "$said" | head -1)

# The resource that is there: with names of nothing every answer would be a 404.
settings=$(mktemp --suffix .toml)
printf '[parameters]\n"path.id" = "orders"\n' >"$settings"

# A stream of events does not end; its answers have tests of their own.
"$cache/schemathesis/bin/st" --config-file "$settings" run "${url}api/v1/openapi.json" \
  --exclude-path /api/v1/events \
  --checks not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance \
  --max-examples "$examples" --workers 1 --request-timeout 20 --no-color
