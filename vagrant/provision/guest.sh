#!/bin/bash
# Defines and starts a guest on this host.
#
#   guest.sh xml            print the domain XML
#   guest.sh define         make the disk and define the domain
#   guest.sh start          define and start
#
#   GUEST_NAME, GUEST_IP    the guest
#   GUEST_IMAGE             directory made by guest-image.sh
#   GUEST_TYPE              kvm or qemu (default: kvm where /dev/kvm exists)
#   GUEST_MEMORY            MiB (default 768)
#   GUEST_BRIDGE            default br0
set -euo pipefail

type=${GUEST_TYPE:-$([ -e /dev/kvm ] && echo kvm || echo qemu)}
disk=/var/lib/libvirt/images/$GUEST_NAME.qcow2
id=$(echo "drover guest $GUEST_NAME" | sha256sum)
uuid=$(echo "$id" | sed -E 's/^(.{8})(.{4}).(.{3}).(.{3})(.{12}).*/\1-\2-4\3-8\4-\5/')
mac=$(printf '52:54:00:88:00:%02x' "${GUEST_IP##*.}")

# One CPU model everywhere: a process moves only to a CPU with the same
# features. This one exists under KVM on any vendor and under TCG.
xml() {
    cat <<E
<domain type='$type'>
  <name>$GUEST_NAME</name>
  <uuid>$uuid</uuid>
  <memory unit='MiB'>${GUEST_MEMORY:-768}</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='${GUEST_MACHINE:-pc}'>hvm</type>
    <kernel>$GUEST_IMAGE/vmlinuz</kernel>
    <initrd>$GUEST_IMAGE/initrd.img</initrd>
    <cmdline>root=/dev/vda rw console=ttyS0 loglevel=5 net.ifnames=0 mitigations=off systemd.hostname=$GUEST_NAME systemd.machine_id=${id:0:32} drover.ip=$GUEST_IP/24</cmdline>
  </os>
  <features><acpi/></features>
  <cpu mode='custom' match='exact' check='none'><model fallback='forbid'>Nehalem</model></cpu>
  <clock offset='utc'>
    <timer name='rtc' tickpolicy='catchup' track='guest'/>
    <timer name='hpet' present='yes'/>
  </clock>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>restart</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' cache='unsafe' discard='unmap'/>
      <source file='$disk'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <interface type='bridge'>
      <mac address='$mac'/>
      <source bridge='${GUEST_BRIDGE:-br0}'/>
      <model type='virtio'/>
    </interface>
    <controller type='virtio-serial' index='0'/>
    <channel type='unix'>
      <target type='virtio' name='org.qemu.guest_agent.0'/>
    </channel>
    <serial type='file'>
      <source path='/var/log/libvirt/qemu/$GUEST_NAME-console.log' append='on'/>
      <target port='0'/>
    </serial>
    <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
    <memballoon model='virtio'><stats period='5'/></memballoon>
  </devices>
</domain>
E
}

define() {
    [ -f "$disk" ] || qemu-img create -q -f qcow2 -F qcow2 -b "$GUEST_IMAGE/guest.qcow2" "$disk"
    virsh -q define /dev/stdin < <(xml) >/dev/null
}

case ${1:-} in
xml) xml ;;
define) define ;;
start)
    define
    virsh -q start "$GUEST_NAME" >/dev/null
    ;;
*)
    sed -n '2,13s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
