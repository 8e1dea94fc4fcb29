#!/bin/bash
# The Debian packages of a host; does nothing where they are installed already.
#
#   packages.sh            a host
#   packages.sh --cluster  also what the one-machine cluster and the image need
set -euo pipefail

packages=(qemu-system-x86 qemu-utils libvirt-daemon libvirt-daemon-system
    libvirt-clients libvirt-daemon-driver-qemu dbus dbus-bin iproute2 nftables
    openssl e2fsprogs python3-libvirt mmdebstrap debian-archive-keyring socat)
if [ "${1:-}" = --cluster ]; then
    packages+=(util-linux python3 iputils-ping)
fi

missing=()
for package in "${packages[@]}"; do
    state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$state" = installed ] || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
apt-get install -q -y --no-install-recommends "${missing[@]}"
