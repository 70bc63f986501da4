#!/usr/bin/env bash
# Licences, sources and bans with cargo-deny (deny.toml); advisories too when their database can be had.
# Without cargo-deny the licences are read from cargo's own metadata, against the same list.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if cargo deny --version >/dev/null 2>&1; then
  cargo deny --offline check --hide-inclusion-graph bans licenses sources
  cargo deny check --hide-inclusion-graph advisories || echo "check: advisories could not be checked or have findings" >&2
else
  cargo metadata --format-version 1 --locked | python3 scripts/check-licences.py deny.toml
fi
