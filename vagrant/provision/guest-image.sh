#!/bin/bash
# Builds the guest image (Debian 13 with criu, redis and a guest agent) and
# prints the directory that holds it: vmlinuz, initrd.img, guest.qcow2.
#
#   guest-image.sh          build it unless the cache has it, print its directory
#   guest-image.sh --digest print the digest of the recipe
#
# The cache is keyed by a digest of this script and of what the environment
# adds to it, so a changed recipe makes a new image and an old one stays valid
# for whoever still uses it.
#
#   DROVER_CACHE         where images are kept (default /var/cache/drover)
#   DROVER_MIRROR        Debian mirror (default: the one that this machine's apt uses)
#   DROVER_GUEST_EXTRA   more packages, separated by spaces; their units stay off
set -euo pipefail

CACHE=${DROVER_CACHE:-/var/cache/drover}
# mmdebstrap takes its own default when apt names none.
MIRROR=${DROVER_MIRROR:-$(apt-get indextargets --format '$(SITE)' 'Label: Debian' 2>/dev/null |
    sort -u | head -n 1)}
SUITE=trixie
SIZE=3G
PACKAGES="systemd systemd-sysv dbus udev kmod qemu-guest-agent criu iproute2
  nftables procps redis-server python3-minimal util-linux-extra iputils-ping
  initramfs-tools zstd linux-image-cloud-amd64 ${DROVER_GUEST_EXTRA:-}"

digest=$( { cat "$0"; echo "$PACKAGES"; } | sha256sum | cut -c1-16)
if [ "${1:-}" = --digest ]; then
    echo "$digest"
    exit 0
fi
out=$CACHE/images/$digest
mkdir -p "$CACHE/images"

# One builder at a time; whoever waited finds the image ready.
exec 9>"$CACHE/images/.lock"
flock 9
if [ -f "$out/guest.qcow2" ]; then
    touch "$out"
    echo "$out"
    exit 0
fi
rm -rf "$CACHE"/images/.build.*
tmp=$(mktemp -d "$CACHE/images/.build.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
chmod 755 "$tmp"

# What goes into the initramfs is fixed before the kernel is installed, so it is
# built once and small: under TCG its unpacking is a good part of the boot.
mkdir -p "$tmp/pre/etc/initramfs-tools/conf.d"
cat >"$tmp/pre/etc/initramfs-tools/conf.d/drover" <<'E'
MODULES=list
COMPRESS=zstd
FSTYPE=ext4
RUNSIZE=10%
E
cat >"$tmp/pre/etc/initramfs-tools/modules" <<'E'
virtio_pci
virtio_blk
virtio_console
ext4
E

mkdir -p "$tmp/post/etc/modules-load.d" "$tmp/post/etc/systemd/system" \
    "$tmp/post/etc/systemd/journald.conf.d" "$tmp/post/etc/sysctl.d" \
    "$tmp/post/usr/local/sbin" "$tmp/post/etc/tmpfiles.d"
# Packages that bring services: each is run as a feature or not at all.
mkdir -p "$tmp/pre/etc/postgresql-common"
echo "create_main_cluster = false" >"$tmp/pre/etc/postgresql-common/createcluster.conf"
# criu asks the kernel about sockets by netlink and cannot load modules itself
# from inside a feature's namespaces, so they are there from the start.
cat >"$tmp/post/etc/modules-load.d/drover.conf" <<'E'
tun
veth
macvlan
nf_tables
nf_conntrack
inet_diag
tcp_diag
udp_diag
unix_diag
raw_diag
netlink_diag
af_packet_diag
virtio_console
E
cat >"$tmp/post/etc/systemd/journald.conf.d/drover.conf" <<'E'
[Journal]
Storage=volatile
RuntimeMaxUse=16M
E
# The address comes from the kernel command line: drover.ip=10.88.0.101/24
cat >"$tmp/post/usr/local/sbin/drover-guest-net" <<'E'
#!/bin/sh
for word in $(cat /proc/cmdline); do
    case $word in drover.ip=*) ip=${word#drover.ip=} ;; esac
done
[ -n "$ip" ] || exit 0
ip link set lo up
ip link set eth0 up
ip addr replace "$ip" dev eth0
E
chmod 755 "$tmp/post/usr/local/sbin/drover-guest-net"
cat >"$tmp/post/etc/systemd/system/drover-guest-net.service" <<'E'
[Unit]
Description=Static address from the kernel command line
DefaultDependencies=no
After=systemd-udev-trigger.service sys-subsystem-net-devices-eth0.device
Wants=sys-subsystem-net-devices-eth0.device
Before=network.target
Wants=network.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/local/sbin/drover-guest-net

[Install]
WantedBy=multi-user.target
E
cat >"$tmp/post/etc/hosts" <<'E'
127.0.0.1 localhost
10.88.0.9 client
10.88.0.11 h1
10.88.0.12 h2
10.88.0.13 h3
E

cat >"$tmp/customize" <<'E'
#!/bin/sh
set -e
root=$1
cp -a "$(dirname "$0")/post/." "$root/"
: >"$root/etc/machine-id"
echo guest >"$root/etc/hostname"
systemctl --root "$root" enable drover-guest-net.service
for unit in redis-server.service getty@tty1.service serial-getty@ttyS0.service \
    systemd-firstboot.service systemd-networkd.service \
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer \
    e2scrub_all.timer fstrim.timer logrotate.timer man-db.timer \
    memcached.service nginx.service postgresql.service podman.service podman.socket \
    podman-restart.service podman-auto-update.timer; do
    systemctl --root "$root" mask "$unit"
done
rm -rf "$root"/usr/share/doc/* "$root"/usr/share/man/* "$root"/usr/share/locale/* \
    "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/*.bin
E
chmod 755 "$tmp/customize"

echo "building the guest image $digest" >&2
# shellcheck disable=SC2086 # the list is meant to be split
mmdebstrap --mode=root --variant=minbase --quiet \
    --aptopt='APT::Install-Recommends "false"' \
    --aptopt='Acquire::Retries "3"' \
    --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='force-unsafe-io' \
    --include="$(echo $PACKAGES | tr ' ' ',')" \
    --essential-hook="cp -a $tmp/pre/. \"\$1/\"" \
    --dpkgopt='force-confold' \
    --customize-hook="$tmp/customize" \
    "$SUITE" "$tmp/rootfs" ${MIRROR:+"$MIRROR"} >&2

mkdir "$tmp/image"
cp -L "$tmp/rootfs"/boot/vmlinuz-* "$tmp/image/vmlinuz"
cp -L "$tmp/rootfs"/boot/initrd.img-* "$tmp/image/initrd.img"
rm -rf "$tmp/rootfs"/boot/*
truncate -s "$SIZE" "$tmp/guest.raw"
mke2fs -q -t ext4 -L root -m 0 -E lazy_itable_init=1,lazy_journal_init=1 \
    -d "$tmp/rootfs" "$tmp/guest.raw"
qemu-img convert -O qcow2 "$tmp/guest.raw" "$tmp/image/guest.qcow2"
rm -rf "$out"
chmod 755 "$tmp/image"
sync "$tmp/image/guest.qcow2"
mv "$tmp/image" "$out"
# Images of recipes that nobody used for two weeks go.
find "$CACHE/images" "$CACHE/states" -mindepth 1 -maxdepth 1 -type d -mtime +14 \
    -exec rm -rf {} + 2>/dev/null || true
echo "$out"
