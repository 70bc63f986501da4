#!/usr/bin/env bash
# curl: see README.md. Arguments: the front's URL, a prefix for the keys of orders.
set -euo pipefail
front=$1 keys=$2
common=(--silent --show-error --max-time 20 --output /dev/null --write-out '%{http_version} %{http_code} %{num_connects}\n')

# An order, as curl's arguments. Its key.
order() {
  echo --header 'content-type:application/json' --data "{\"key\":\"$keys-$1\",\"customer\":7,\"amount\":\"1.25\"}" "$front/orders"
}

# What curl said, what it should have said.
expect() {
  [ "$1" = "$2" ] || { echo "round $number: $1, not $2" >&2; exit 1; }
}

number=0
# Nothing is ever written to the input: it can be read only when it has ended.
while ! read -r -t 0; do
  one=("${common[@]}" --http1.1)
  # shellcheck disable=SC2046 # words are meant
  got=$(curl "${one[@]}" "$front/customers/7" --next "${one[@]}" $(order "1-$number"))
  expect "$got" $'1.1 200 1\n1.1 201 0'
  # On connections of their own: curl 7.88 does not use one twice that spoke HTTP/2 without asking.
  two=("${common[@]}" --http2-prior-knowledge)
  expect "$(curl "${two[@]}" "$front/customers/7")" '2 200 1'
  # shellcheck disable=SC2046 # words are meant
  expect "$(curl "${two[@]}" $(order "2-$number"))" '2 201 1'
  echo "round $number"
  number=$((number + 1))
  # Others need the machine, too.
  sleep 0.2
done
echo "done $number"
