#!/usr/bin/env bash
# PostgreSQL's own regression and isolation tests, for the server that is installed: Debian's source package of exactly its version,
# unpacked into the cache folder, with the C functions that the tests call built against the server's headers. Prints the folder.
# Nothing of it is committed; the programs that run them (pg_regress, isolationtester) come with Debian's postgresql-client-15.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/cache.sh"

version=$(dpkg-query -W -f '${source:Version}' postgresql-15)
suite=$cache/postgres-suite-$version
if [ -d "$suite" ]; then
  echo "$suite"
  exit
fi

mkdir -p "$cache"
work=$(mktemp -d "$cache/.postgres-suite-XXXXXX")
trap 'rm -rf "$work"' EXIT
echo "setup: fetching the source of PostgreSQL $version for its tests" >&2

# Lists of sources of the same origins as the packages, kept apart from the system's own.
mkdir -p "$work/apt/parts" "$work/apt/lists/partial" "$work/got" "$work/headers" "$work/suite/lib"
for file in /etc/apt/sources.list.d/*.sources; do
  if [ -e "$file" ]; then sed -E 's/^Types:.*/Types: deb-src/' "$file" > "$work/apt/parts/$(basename "$file")"; fi
done
for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
  if [ -e "$file" ]; then sed -nE 's/^deb /deb-src /p' "$file" > "$work/apt/parts/$(basename "$file" .list).list"; fi
done
sources=(-o Dir::Etc::sourcelist=/dev/null -o "Dir::Etc::sourceparts=$work/apt/parts" -o "Dir::State::lists=$work/apt/lists"
  -o APT::Sandbox::User=root -o "Dir::Cache::srcpkgcache=" -o "Dir::Cache::pkgcache=")
apt-get "${sources[@]}" -qq update >&2
cd "$work/got"
apt-get "${sources[@]}" -qq source --download-only "postgresql-15=$version" >&2
download_packages "postgresql-server-dev-15=$version"

tar -xf postgresql-15_*.orig.tar.* -C "$work/suite" --strip-components=1 --wildcards \
  '*/src/test/regress' '*/src/test/isolation' '*/contrib/spi'
dpkg -x postgresql-server-dev-15_*.deb "$work/headers"
for source in src/test/regress/regress.c contrib/spi/refint.c contrib/spi/autoinc.c; do
  cc -O2 -fPIC -shared -fno-strict-aliasing -fwrapv -w -D_GNU_SOURCE -DDLSUFFIX='".so"' -DREFINT_VERBOSE \
    -I "$work/headers/usr/include/postgresql/15/server" -I "$work/headers/usr/include/postgresql" -I "$work/headers/usr/include" \
    "$work/suite/$source" -o "$work/suite/lib/$(basename "$source" .c).so"
done
# The database's user reads it.
chmod -R go+rX "$work/suite"
mv "$work/suite" "$suite"
echo "$suite"
