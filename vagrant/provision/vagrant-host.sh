#!/bin/bash
# Turns a Vagrant machine into a host: the same steps as the one-machine
# cluster takes, plus those that a whole machine needs.
set -euo pipefail
provision=/vagrant/provision

"$provision/packages.sh"

# The second interface is the network between hosts; guests join it by br0.
if ! ip link show br0 >/dev/null 2>&1; then
    cat >/etc/systemd/network/10-br0.netdev <<E
[NetDev]
Name=br0
Kind=bridge
E
    cat >/etc/systemd/network/20-br0.network <<E
[Match]
Name=br0
[Network]
Address=$HOST_IP/24
E
    cat >/etc/systemd/network/20-fabric.network <<E
[Match]
Name=eth1 ens6 enp0s6
[Network]
Bridge=br0
E
    systemctl enable --now systemd-networkd
fi

"$provision/host.sh" base
"$provision/host.sh" pki "/vagrant/.pki/$HOST_NAME"
systemctl disable --now libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket || true
echo 'LIBVIRTD_ARGS="--listen"' >/etc/default/libvirtd
systemctl restart libvirtd
# Left by a scenario: sections to append to drover.toml.
[ ! -f /vagrant/extra.toml ] || export HOST_EXTRA_TOML=/vagrant/extra.toml
[ ! -x /vagrant/stage/usr/sbin/droverd ] || "$provision/host.sh" drover /vagrant/stage

GUEST_IMAGE=$("$provision/guest-image.sh")
export GUEST_IMAGE
virsh domstate "$GUEST_NAME" 2>/dev/null | grep -q running || "$provision/guest.sh" start
