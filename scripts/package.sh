#!/usr/bin/env bash
# What is shipped, into target/package: godwit_VERSION_ARCH.deb, godwit-VERSION.tgz (the Helm chart), and, where a Docker daemon answers,
# the image godwit:VERSION. PROFILE=release or dev builds quicker than dist: a package to look at, which says so in its version.
# NO_BUILD=1 packs the binary that is there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/cache.sh
profile=${PROFILE:-dist}
case $profile in
  dist) folder=dist revision=1 ;;
  dev) folder=debug revision=1~dev ;;
  *) folder=$profile revision=1~$profile ;;
esac
out=target/package

if [ ! -x "$cache/cargo-deb/bin/cargo-deb" ]; then
  echo "package: fetching cargo-deb"
  # gzip: xz would need liblzma's headers.
  cargo install --quiet --locked --root "$cache/cargo-deb" --no-default-features --features gzip --version '^3' cargo-deb
fi

build=(cargo build --locked --profile "$profile" --package godwit --features otlp,kubernetes)
if [ "$profile" = dist ]; then
  # Panics name the crates' files, not where they lie on the machine that builds.
  home=${CARGO_HOME:-$HOME/.cargo}
  export CFLAGS="${CFLAGS:-} -ffile-prefix-map=$home=/cargo" CXXFLAGS="${CXXFLAGS:-} -ffile-prefix-map=$home=/cargo"
  build+=(--config "build.rustflags = ['--remap-path-prefix=$home=/cargo', '--remap-path-prefix=$PWD=/godwit']")
fi
[ -n "${NO_BUILD:-}" ] || "${build[@]}"
binary=target/$folder/godwit

rm -rf "$out/man" "$out/completions"
mkdir -p "$out/completions"
"$binary" man --directory "$out/man"
gzip -9n "$out"/man/*.1
"$binary" completions bash >"$out/completions/godwit"
"$binary" completions zsh >"$out/completions/_godwit"
"$binary" completions fish >"$out/completions/godwit.fish"

rm -f "$out"/*.deb
"$cache/cargo-deb/bin/cargo-deb" deb --no-build --quiet --package godwit --profile "$profile" --deb-revision "$revision" --output "$out/"
ls -l "$out"/*.deb

if [ -n "$(PATH=$cache/helm/bin:$PATH command -v helm)" ]; then
  PATH=$cache/helm/bin:$PATH helm package packaging/helm/godwit --destination "$out"
else
  echo "package: there is no helm: no chart was packed (make check-packaging fetches one)"
fi

version=$("$binary" --version | cut -d' ' -f2)
if docker info >/dev/null 2>&1; then
  docker build --file packaging/Dockerfile --tag "godwit:$version" .
else
  echo "package: no Docker daemon answers: no image was built"
fi
