#!/bin/bash
# Packages from what `make build` made: build.sh PROFILE DIRECTORY
#
#   DIRECTORY/*.deb *.rpm      drover (hosts) and drover-guest (guests)
#   DIRECTORY/drover.cdx.json  software bill of materials, CycloneDX
#
# VERSION in the environment replaces the version of Cargo.toml.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
profile=$1 out=$2
dir=target/$profile
guest=target/x86_64-unknown-linux-gnu/$profile/drover-guest
PATH=$HOME/.cargo/bin:$PATH

for tool in cargo-deb cargo-generate-rpm cargo-cyclonedx; do
    command -v $tool >/dev/null || cargo install --quiet --locked $tool
done

# Where the lists of assets in Cargo.toml look.
made=target/packages
rm -rf "$made/man" "$made/completions"
install -D -m 755 "$guest" "$made/drover-guest"
"$dir/drover" generate man "$made/man"
"$dir/drover" generate completions "$made/completions"
gzip -9 -n -f "$made"/man/man*/*
for page in packaging/man/*.[57]; do
    section=man${page##*.}
    install -d "$made/man/$section"
    gzip -9 -n -c "$page" >"$made/man/$section/$(basename "$page").gz"
done

# Debian's changelog says what is in this version and points to the one for people.
version=${VERSION:-$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)}
date=$(git log -1 --format=%cD 2>/dev/null || date -R)
printf 'drover (%s-1) unstable; urgency=medium\n\n  * See https://drover.example.org/ and the file CHANGELOG.md of this version.\n\n -- The Drover authors <drover@example.org>  %s\n' \
    "$version" "$date" >"$made/changelog"
sed 's/^drover /drover-guest /' "$made/changelog" >"$made/changelog-guest"
gzip -9 -n -c CHANGELOG.md >"$made/changelog.gz"

mkdir -p "$out"
rm -f "$out"/*.deb "$out"/*.rpm
for variant in "" guest; do
    cargo deb --quiet --no-build --profile "$profile" --package drover ${variant:+--variant $variant} \
        ${VERSION:+--deb-version "$VERSION-1"} --output "$out/"
    cargo generate-rpm --profile "$profile" ${variant:+--variant $variant} \
        ${VERSION:+--set-metadata "version = \"$VERSION\""} --output "$out/"
done
cargo cyclonedx --quiet --format json --features guest --override-filename drover.cdx
# Names, not the place it was built at.
sed "s#path+file://$PWD##g" drover.cdx.json >"$out/drover.cdx.json"
rm drover.cdx.json
find qmp hooks tests/tools -name drover.cdx.json -delete
ls -l "$out"/*.deb "$out"/*.rpm "$out"/*.json
