#!/bin/bash
# Configures one host. Run as root on the host itself: a Vagrant machine or a
# host of the one-machine cluster, which are treated alike.
#
#   host.sh base            libvirt's configuration, names, the hook directory
#   host.sh pki DIR         certificates made by pki.sh (DIR/NAME)
#   host.sh drover STAGE    what `make install DESTDIR=STAGE` made, and the
#                           configuration
#
#   HOST_NAME, HOST_IP      this host
#   HOST_PEERS              all hosts: "h1=10.88.0.11 h2=10.88.0.12 ..."
#   HOST_CPUS, HOST_MEMORY  capacity for drover.toml; unset: as the host has
#   HOST_LOAD_SOURCE        "domains" where hosts share one machine
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

# Sets KEY to VALUE in a libvirt configuration file.
set_key() { # FILE KEY VALUE
    sed -i "/^$2[[:space:]]*=/d" "$1"
    printf '%s = %s\n' "$2" "$3" >>"$1"
}

base() {
    local pair conf=/etc/libvirt/libvirtd.conf qemu=/etc/libvirt/qemu.conf
    echo "$HOST_NAME" >/etc/hostname
    {
        echo "127.0.0.1 localhost"
        echo "10.88.0.9 client"
        for pair in $HOST_PEERS; do echo "${pair#*=} ${pair%%=*}"; done
    } >/etc/hosts

    touch "$conf" "$qemu"
    # A copy of one machine has its hardware UUID too; libvirt refuses to
    # migrate between hosts that claim to be the same one.
    set_key "$conf" host_uuid "\"$(echo "drover $HOST_NAME" | sha256sum |
        sed -E 's/^(.{8})(.{4}).(.{3}).(.{3})(.{12}).*/\1-\2-4\3-8\4-\5/')\""
    set_key "$conf" listen_tls 1
    set_key "$conf" listen_tcp 0
    set_key "$conf" listen_addr "\"$HOST_IP\""
    set_key "$conf" auth_unix_rw '"none"'
    set_key "$conf" auth_unix_ro '"none"'
    set_key "$conf" auth_tls '"none"'
    set_key "$qemu" security_driver '"none"'
    set_key "$qemu" user '"root"'
    set_key "$qemu" group '"root"'
    set_key "$qemu" cgroup_controllers "${HOST_CGROUP_CONTROLLERS:-[ \"cpu\", \"memory\", \"cpuset\", \"cpuacct\" ]}"
    set_key "$qemu" namespaces '[]'
    set_key "$qemu" remember_owner 0
    set_key "$qemu" dynamic_ownership 0
    install -d -m 755 /etc/libvirt/hooks /etc/libvirt/hooks/qemu.d
    rm -f /etc/libvirt/qemu/networks/autostart/default.xml
    # libvirt makes the disk of a guest that migrates here only within a pool.
    install -d -m 755 /etc/libvirt/storage /etc/libvirt/storage/autostart
    cat >/etc/libvirt/storage/default.xml <<E
<pool type='dir'>
  <name>default</name>
  <target><path>/var/lib/libvirt/images</path></target>
</pool>
E
    ln -sf ../default.xml /etc/libvirt/storage/autostart/default.xml
}

config() {
    local pair
    install -d -m 755 /etc/drover
    {
        echo "[host]"
        echo "name = \"$HOST_NAME\""
        [ -z "${HOST_CPUS:-}" ] || echo "cpus = $HOST_CPUS"
        [ -z "${HOST_MEMORY:-}" ] || echo "memory_mib = $HOST_MEMORY"
        [ -z "${HOST_LOAD_SOURCE:-}" ] || echo "load_source = \"$HOST_LOAD_SOURCE\""
        cat <<E
[libvirt]
uri = "qemu:///system"
[meter]
interval_s = 2
[history]
dir = "/var/lib/drover/history"
[peer]
listen = "$HOST_IP:16515"
ca = "/etc/pki/CA/cacert.pem"
server_cert = "/etc/pki/libvirt/servercert.pem"
server_key = "/etc/pki/libvirt/private/serverkey.pem"
client_cert = "/etc/pki/libvirt/clientcert.pem"
client_key = "/etc/pki/libvirt/private/clientkey.pem"
E
        for pair in $HOST_PEERS; do
            [ "${pair%%=*}" != "$HOST_NAME" ] || continue
            echo "[[peer.hosts]]"
            echo "name = \"${pair%%=*}\""
            echo "address = \"${pair#*=}:16515\""
            echo "groups = [\"default\"]"
        done
    } >/etc/drover/drover.toml
    # A test may leave a file of its own that is to be appended.
    [ ! -f "${HOST_EXTRA_TOML:-/nonexistent}" ] || cat "$HOST_EXTRA_TOML" >>/etc/drover/drover.toml
}

drover() {
    local stage=$1
    [ -x "$stage/usr/sbin/droverd" ] || {
        echo "host.sh: $stage has no usr/sbin/droverd; make it with: make install DESTDIR=$stage" >&2
        exit 1
    }
    # The bus reads its policy as soon as it changes: first the group it names.
    [ ! -f "$stage/usr/lib/sysusers.d/drover.conf" ] ||
        systemd-sysusers "$stage/usr/lib/sysusers.d/drover.conf"
    # --remove-destination: a running binary is replaced, not written into.
    cp -a --no-preserve=ownership --remove-destination "$stage/." /
    install -d -m 700 /var/lib/drover /var/lib/drover/history
    install -d -m 755 /var/log/drover
    if [ -f /usr/lib/tmpfiles.d/drover.conf ]; then
        systemd-tmpfiles --create /usr/lib/tmpfiles.d/drover.conf
    fi
    install -d -m 755 /run/drover
    if [ ! -f /etc/drover/drover.toml ] || [ -z "${HOST_KEEP_CONFIG:-}" ]; then config; fi
    # Both notice new files only when told.
    if [ -S /run/dbus/system_bus_socket ]; then
        dbus-send --system --type=method_call --print-reply=literal \
            --dest=org.freedesktop.DBus / org.freedesktop.DBus.ReloadConfig >/dev/null || true
    fi
    if [ -d /run/systemd/system ]; then
        systemctl daemon-reload
        systemctl reload libvirtd
        systemctl enable droverd
        systemctl restart droverd
    elif [ -s /run/libvirtd.pid ]; then
        kill -HUP "$(cat /run/libvirtd.pid)" || true
    fi
}

case ${1:-} in
base) base ;;
pki) "$here/pki.sh" install "$2" ;;
drover) drover "$2" ;;
*)
    sed -n '2,16s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
