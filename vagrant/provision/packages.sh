#!/bin/bash
# The Debian packages of a host; does nothing where they are installed already.
#
#   packages.sh            a host
#   packages.sh --cluster  also what the one-machine cluster and the image need
#   packages.sh --build    also what building Drover needs
#   packages.sh --vagrant  also what checks the Vagrantfile
#   packages.sh --packages also what checking the packages needs
set -euo pipefail

packages=(qemu-system-x86 qemu-utils libvirt-daemon libvirt-daemon-system
    libvirt-clients libvirt-daemon-driver-qemu dbus dbus-bin iproute2 nftables
    openssl e2fsprogs python3-libvirt mmdebstrap debian-archive-keyring socat)
for option in "$@"; do
    case $option in
        --cluster) packages+=(util-linux python3 iputils-ping polkitd python3-jeepney
            openssh-client dropbear-bin) ;;
        --vagrant) packages+=(vagrant vagrant-libvirt) ;;
        --packages) packages+=(lintian rpm file) ;;
        --build) packages+=(libvirt-dev pkg-config gcc libc6-dev make curl ca-certificates) ;;
        *) echo "packages.sh: unknown option '$option'" >&2; exit 2 ;;
    esac
done

installed() { dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null || true; }

missing=()
for package in "${packages[@]}"; do
    [ "$(installed "$package")" = installed ] || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
if ! apt-get install -q -y --no-install-recommends "${missing[@]}"; then
    # A qemu-utils of another suite than qemu-system-x86 (a backport, say) breaks it: take both
    # from the suite that qemu-system-x86 comes from.
    version=$(apt-cache policy qemu-system-x86 | sed -n 's/ *Candidate: //p')
    apt-get install -q -y --no-install-recommends --allow-downgrades \
        "${missing[@]}" "qemu-utils=$version"
fi
