#!/usr/bin/env bash
# What is shipped, into target/package: godwit_VERSION_ARCH.deb, godwit-VERSION.tgz (the Helm chart), and, where a Docker daemon answers,
# the image godwit:VERSION. PROFILE=release builds quicker than dist; NO_BUILD=1 packs the binary that is there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/cache.sh
profile=${PROFILE:-dist}
out=target/package

if [ ! -x "$cache/cargo-deb/bin/cargo-deb" ]; then
  echo "package: fetching cargo-deb"
  # gzip: xz would need liblzma's headers.
  cargo install --quiet --locked --root "$cache/cargo-deb" --no-default-features --features gzip --version '^3' cargo-deb
fi

[ -n "${NO_BUILD:-}" ] || cargo build --locked --profile "$profile" --package godwit
binary=target/$profile/godwit

rm -rf "$out/man" "$out/completions"
mkdir -p "$out/completions"
"$binary" man --directory "$out/man"
gzip -9n "$out"/man/*.1
"$binary" completions bash >"$out/completions/godwit"
"$binary" completions zsh >"$out/completions/_godwit"
"$binary" completions fish >"$out/completions/godwit.fish"

rm -f "$out"/*.deb
"$cache/cargo-deb/bin/cargo-deb" deb --no-build --quiet --package godwit --profile "$profile" --output "$out/"
ls -l "$out"/*.deb

if [ -n "$(PATH=$cache/helm/bin:$PATH command -v helm)" ]; then
  PATH=$cache/helm/bin:$PATH helm package packaging/helm/godwit --destination "$out"
fi

version=$("$binary" --version | cut -d' ' -f2)
if docker info >/dev/null 2>&1; then
  docker build --file packaging/Dockerfile --tag "godwit:$version" .
else
  echo "package: no Docker daemon answers: no image was built"
fi
