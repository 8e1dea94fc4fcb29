#!/bin/bash
# Downloads podman with what it needs, for guests as guest-image.sh makes them (Debian 13), and
# prints the archive that a guest takes: podman.tar. Does nothing when it is there already.
#
#   podman.sh DIR STATUS    DIR: where it is kept; STATUS: /var/lib/dpkg/status of a guest, so that
#                           what the guest has is left out
#
# The guest image stays as small as it is: 24 MB go into the guests that need them.
#
#   DROVER_MIRROR           Debian mirror (default: the one that this machine's apt uses)
set -euo pipefail
mkdir -p "${1:?DIR}"
dir=$(cd "$1" && pwd)
status=$(realpath "${2:?STATUS}")
out=$dir/podman.tar
if [ -s "$out" ]; then
    echo "$out"
    exit 0
fi
mirror=${DROVER_MIRROR:-$(apt-get indextargets --format '$(SITE)' 'Label: Debian' 2>/dev/null |
    sort -u | head -n 1)}
work=$(mktemp -d "$dir/.podman.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/{state/lists/partial,cache/archives/partial,etc/apt.conf.d,etc/preferences.d}
key=/usr/share/keyrings/debian-archive-keyring.gpg
echo "deb [signed-by=$key] ${mirror:-http://deb.debian.org/debian} trixie main" >"$work/etc/sources.list"
# An apt of its own: the machine's lists and packages are not touched. Its proxy settings hold.
options=(-o "Dir::State=$work/state" -o "Dir::State::status=$status" -o "Dir::Cache=$work/cache"
    -o "Dir::Etc::sourcelist=$work/etc/sources.list" -o "Dir::Etc::sourceparts=/dev/null"
    -o "Dir::Etc::preferencesparts=$work/etc/preferences.d" -o "APT::Sandbox::User=root"
    -o "Acquire::Languages=none" -q -y --no-install-recommends)
export DEBIAN_FRONTEND=noninteractive
apt-get "${options[@]}" update >&2
apt-get "${options[@]}" --download-only install podman crun >&2
# No partial file is ever taken for the archive.
tar -C "$work/cache/archives" -cf "$work/podman.tar" $(cd "$work/cache/archives" && echo *.deb)
mv "$work/podman.tar" "$out"
echo "$out"
