#!/bin/bash
# Builds virtqemud and virtproxyd, libvirt's modular daemons, which Debian 12 does not package, from
# the source of the very libvirt that is installed: they use its libraries and its QEMU driver.
# Prints the directory that they are in; does nothing where they are there already.
#
#   DROVER_CACHE    where they are kept (default /var/cache/drover)
#   DROVER_MIRROR   Debian mirror (default: the one that this machine's apt uses)
set -euo pipefail
version=$(dpkg-query -W -f '${source:Version}' libvirt-daemon-driver-qemu)
out=${DROVER_CACHE:-/var/cache/drover}/virtqemud/$version
if [ -x "$out/virtqemud" ] && [ -x "$out/virtproxyd" ]; then
    echo "$out"
    exit 0
fi
MIRROR=${DROVER_MIRROR:-$(apt-get indextargets --format '$(SITE)' 'Label: Debian' 2>/dev/null |
    sort -u | head -n 1)}
SUITE=$(. /etc/os-release && echo "$VERSION_CODENAME")

packages=(meson ninja-build gcc libc6-dev pkg-config libglib2.0-dev libgnutls28-dev libtirpc-dev
    libxml2-dev libxml2-utils xsltproc python3-docutils libyajl-dev gettext dpkg-dev)
if ! dpkg-query -W "${packages[@]}" >/dev/null 2>&1; then
    export DEBIAN_FRONTEND=noninteractive
    { apt-get update -q && apt-get install -q -y --no-install-recommends "${packages[@]}"; } >&2
fi

tmp=$(mktemp -d /var/tmp/virtqemud.XXXXXX)
trap 'rm -rf "$tmp"' EXIT
mkdir -p "$tmp/lists/partial"
for suite in "$SUITE" "$SUITE-updates"; do
    echo "deb-src $MIRROR $suite main"
done >"$tmp/sources.list"
echo "deb-src ${MIRROR%/debian*}/debian-security $SUITE-security main" >"$tmp/security.list"
source_of() { # LIST
    local apt=(apt-get -q -o "Dir::Etc::sourcelist=$1" -o Dir::Etc::sourceparts=-
        -o "Dir::State::lists=$tmp/lists" -o APT::Sandbox::User=root)
    "${apt[@]}" update >&2 &&
        (cd "$tmp" && "${apt[@]}" source --download-only "libvirt=$version" >&2)
}
source_of "$tmp/sources.list" || source_of "$tmp/security.list"
dpkg-source --no-check -x "$tmp"/libvirt_*.dsc "$tmp/src" >&2

# As Debian configures it, less all that the two programs do not need.
meson setup "$tmp/build" "$tmp/src" --prefix=/usr --sysconfdir=/etc --localstatedir=/var \
    --libdir="lib/$(dpkg-architecture -qDEB_HOST_MULTIARCH)" -Drunstatedir=/run \
    -Dauto_features=disabled -Ddriver_qemu=enabled -Ddriver_libvirtd=enabled \
    -Ddriver_remote=enabled -Dremote_default_mode=legacy -Dyajl=enabled \
    -Dqemu_user=libvirt-qemu -Dqemu_group=libvirt-qemu -Dinit_script=none >&2
timeout 3600 ninja -C "$tmp/build" src/virtqemud src/virtproxyd >&2
mkdir -p "$out"
for program in virtproxyd virtqemud; do
    strip -o "$out/$program.new" "$tmp/build/src/$program"
    mv "$out/$program.new" "$out/$program"
done
echo "$out"
