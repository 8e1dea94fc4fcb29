#!/bin/bash
# Tests the cluster itself: that it comes up, does what the tests of Drover need
# from it, and leaves nothing behind, also when `up` was killed. Needs root.
#
# shellcheck disable=SC2317 # functions are called by check
set -uo pipefail
cd "$(dirname "$0")" || exit 1
export DROVER_CLUSTER=${DROVER_CLUSTER:-selftest}
unset DROVER_STAGE
cluster=./cluster
failed=0
work=$(mktemp -d)
trap '$cluster down >/dev/null 2>&1; rm -rf "$work"' EXIT

check() { # TEXT CMD...
    local text=$1 out code
    shift
    out=$("$@" 2>&1)
    code=$?
    if [ $code -eq 0 ]; then
        echo "ok    $text"
    else
        echo "FAIL  $text (exit $code): $out"
        failed=1
    fi
}
refused() { ! "$@"; }
eventually() { # SECONDS CMD...
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        [ "$SECONDS" -lt "$end" ] || return 1
        sleep 0.3
    done
}

# Everything that the machine could be left with. Only what carries this
# cluster's name counts: other clusters come and go meanwhile.
traces() {
    ip netns list | grep -F "dc-$DROVER_CLUSTER." | sed 's/^/netns /'
    grep -hF -e "drover-cluster/$DROVER_CLUSTER" -e "dc-$DROVER_CLUSTER." /proc/[0-9]*/mountinfo 2>/dev/null |
        sed 's/^/mount /'
    # Only what this cluster could have started: its name in a command line.
    for dir in /proc/[0-9]*; do
        tr '\0' ' ' <"$dir/cmdline" | grep -F \
            -e "dc-$DROVER_CLUSTER." -e "drover-cluster/$DROVER_CLUSTER/" | sed "s#^#process $dir #"
    done 2>/dev/null
    find /sys/fs/cgroup -maxdepth 2 -name "drover-cluster.$DROVER_CLUSTER.*"
    ls -d "/run/drover-cluster/$DROVER_CLUSTER" "/var/lib/drover-cluster/$DROVER_CLUSTER" 2>/dev/null
    ip -o link show | grep -oE ' (br0|fabric|client|h[1-9]|vnet[0-9]+)[@:].*' | sed 's/^/link /'
    ls -A /run/libvirt /run/dbus 2>/dev/null | sort
    ls -A /etc/libvirt /etc/libvirt/hooks /etc/libvirt/qemu /var/lib/libvirt/images /etc/drover /etc/pki 2>/dev/null
}
# A process in a namespace that is gone from /run/netns would show in none of
# the above: remember the namespaces' identities and look for them.
inodes() {
    local name
    for name in $(ip netns list | awk '{print $1}' | grep "^dc-$DROVER_CLUSTER\."); do
        stat -L -c %i "/run/netns/$name"
    done
}
living_in() { # INODES...
    local inode all
    all=$(readlink /proc/[0-9]*/ns/net 2>/dev/null)
    for inode in "$@"; do
        case $all in *"net:[$inode]"*) return 0 ;; esac
    done
    return 1
}

$cluster down
traces >"$work/before"

echo "# up"
check "up" $cluster up --no-drover
mapfile -t spaces < <(inodes)
check "a second up is refused" refused $cluster up --no-drover
check "status" $cluster status
check "the test sees the cluster's processes" living_in "${spaces[@]}"
check "the test sees the cluster's traces" refused diff -q "$work/before" <(traces)

echo "# hosts"
for n in 1 2 3; do
    check "h$n: its own name" test "$($cluster exec h$n hostname)" = h$n
    check "h$n: agent command by virsh" $cluster exec h$n virsh -q qemu-agent-command g$n '{"execute":"guest-ping"}'
    check "h$n: hook directory" $cluster exec h$n test -d /etc/libvirt/hooks/qemu.d
done
check "h1 reaches h2's libvirt by TLS" $cluster exec h1 virsh -q -c qemu+tls://h2/system list
for kind in server client; do
    check "$kind certificate: chain, purpose and name" $cluster exec h1 openssl verify \
        -CAfile /etc/pki/CA/cacert.pem -x509_strict -purpose ssl$kind \
        -verify_hostname h1 /etc/pki/libvirt/${kind}cert.pem
done
check "files of a host stay there" $cluster exec h1 sh -c 'echo x >/usr/lib/drover-test'
check "... not on the machine" test ! -e /usr/lib/drover-test
check "... nor on another host" $cluster exec h2 test ! -e /usr/lib/drover-test
$cluster exec h1 sh -c 'exit 7'
check "exec passes the exit code on" test $? -eq 7
{ timeout -s KILL 1 $cluster exec h1 sleep 4711; } >/dev/null 2>&1
check "a killed exec leaves no process" refused $cluster exec h1 pgrep -f 'sleep 471[1]'
check "libvirtd restarts, the guest stays" sh -c \
    "$cluster service libvirtd restart h1 && $cluster exec h1 virsh -q domstate g1 | grep -q running"

echo "# guests"
for n in 1 2 3; do
    check "g$n: criu check" sh -c "$cluster guest-exec g$n criu check 2>&1 | grep -q 'Looks good'"
    check "g$n: answers the client" $cluster exec client ping -q -c 1 -W 5 10.88.0.10$n
    check "g$n: clock" sh -c "t=\$($cluster guest-exec g$n date +%s) && d=\$((t - \$(date +%s))) && [ \$d -ge -2 ] && [ \$d -le 2 ]"
    check "g$n: no failed unit" sh -c "[ -z \"\$($cluster guest-exec g$n systemctl --failed -q --no-legend)\" ]"
done
check "modules" $cluster guest-exec g1 sh -c '
    for m in tun veth macvlan nf_tables inet_diag tcp_diag udp_diag unix_diag netlink_diag af_packet_diag; do
        modprobe $m && [ -d /sys/module/$m ] || { echo $m; exit 1; }
    done'
$cluster guest-exec g1 sh -c 'echo out; echo err >&2; exit 5' >"$work/out" 2>"$work/err"
check "guest-exec passes the exit code on" test $? -eq 5
check "... and both outputs" sh -c "grep -qx out $work/out && grep -qx err $work/err"
$cluster guest-exec --timeout 1 g1 sleep 4712 >/dev/null 2>&1
check "guest-exec ends what takes too long" test $? -eq 124
check "... in the guest too" refused $cluster guest-exec g1 pgrep -f 'sleep 471[2]'
head -c 1000000 /dev/urandom >"$work/file"
check "guest-push" $cluster guest-push g2 "$work/file" /root/file 0750
check "... whole, with its mode" test "$($cluster guest-exec g2 sh -c 'sha256sum </root/file; stat -c %a /root/file' | tr -d '\n')" \
    = "$(sha256sum <"$work/file" | tr -d '\n')750"
check "macvlan with its own MAC in a network namespace" $cluster guest-exec g1 sh -ec '
    ip link add mv0 link eth0 address 52:54:00:88:01:c8 type macvlan mode bridge
    ip netns add feature
    ip link set mv0 netns feature
    ip -n feature addr add 10.88.0.200/24 dev mv0
    ip -n feature link set mv0 up'
check "... reached by the client" eventually 5 $cluster exec client ping -q -c 1 -W 2 10.88.0.200
check "... under that MAC" sh -c "$cluster exec client ip neigh show 10.88.0.200 | grep -q 52:54:00:88:01:c8"
check "... reached from a guest of another host" $cluster guest-exec g2 ping -q -c 1 -W 5 10.88.0.200
$cluster guest-exec g1 ip netns del feature

cat >"$work/channel.xml" <<'E'
<channel type='unix'><target type='virtio' name='org.drover.control.0'/></channel>
E
check "channel: plugged in" sh -c "$cluster exec h1 virsh -q attach-device g1 /dev/stdin --live <$work/channel.xml"
check "channel: the port is there" eventually 10 $cluster guest-exec g1 test -e /dev/virtio-ports/org.drover.control.0
alias=$($cluster exec h1 virsh dumpxml g1 | sed -n "/org.drover.control.0/,/<\/channel>/s/.*alias name='\(.*\)'.*/\1/p")
check "channel: unplugged" $cluster exec h1 virsh -q detach-device-alias g1 "$alias" --live
check "channel: the port is gone" eventually 10 refused $cluster guest-exec g1 test -e /dev/virtio-ports/org.drover.control.0

echo "# network"
check "cut h2" $cluster cut h2
check "... from the client" refused $cluster exec client ping -q -c 1 -W 1 10.88.0.102
check "... from other hosts" refused $cluster exec h1 ping -q -c 1 -W 1 10.88.0.12
check "... the others go on" $cluster exec client ping -q -c 1 -W 5 10.88.0.103
check "... its guest goes on" $cluster guest-exec g2 true
check "heal h2" $cluster heal h2
check "... reached again" eventually 10 $cluster exec client ping -q -c 1 -W 1 10.88.0.102

echo "# slow"
spin='i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done'
millis() { # CMD...: how long it takes
    local begin
    begin=$(date +%s%N)
    "$@" >/dev/null 2>&1 || return
    echo $((($(date +%s%N) - begin) / 1000000))
}
fast=$(millis $cluster guest-exec g3 sh -c "$spin")
check "slow h3 cpu" $cluster slow h3 cpu 0.1
late=$(millis $cluster guest-exec g3 sh -c "$spin")
check "... is slow ($fast ms, $late ms)" test "${late:-0}" -gt $((fast * 2))
check "slow h3 disk" $cluster slow h3 disk 1
check "slow h3 net" $cluster slow h3 net 1
late=$(millis $cluster exec client ping -q -c 1 -W 5 -s 60000 10.88.0.13)
check "... is slow ($late ms)" test "${late:-0}" -gt 200
check "slow h3 off" $cluster slow h3 off
check "slow h2 cpu, left to down" $cluster slow h2 cpu 0.5

gone() {
    traces >"$work/after"
    check "$1: nothing is left" diff "$work/before" "$work/after"
    check "$1: no process is left" refused living_in "${spaces[@]}"
}
check "collect" $cluster collect "$work/logs"
check "... a console's log" test -e "$work/logs/h2/libvirt/qemu/g2-console.log"
echo "# down"
check "down" $cluster down
gone down
check "a second down" $cluster down

echo "# two clusters at a time, the second of another size"
check "up" $cluster up --no-drover --hosts 1
mapfile -t spaces < <(inodes)
other=${DROVER_CLUSTER:0:14}-2
check "up of another" env DROVER_CLUSTER="$other" $cluster up --no-drover --hosts 2 --guests-per-host 1
check "down of the other" env DROVER_CLUSTER="$other" $cluster down
check "the first goes on" $cluster guest-exec g1 true
# The host's process 1 dies, as if by the OOM killer.
kill -9 "$($cluster status --json | sed -n 's/.*"h1": {"pid": \([0-9]*\).*/\1/p')"
check "exec in a dead host is refused" refused $cluster exec h1 true
check "down" $cluster down
gone "after a host died"

echo "# up is killed"
for delay in 0.15 0.4 0.7 1.2 2.0; do
    $cluster up --no-drover >/dev/null 2>&1 &
    pid=$!
    sleep $delay
    kill -9 $pid
    wait $pid 2>/dev/null
    mapfile -t spaces < <(inodes)
    check "down" $cluster down
    gone "killed after $delay s"
done
$cluster up --no-drover >/dev/null 2>&1 &
pid=$!
sleep 1
mapfile -t spaces < <(inodes)
check "down while up runs" $cluster down
wait $pid 2>/dev/null
gone "down while up runs"

[ $failed -eq 0 ] && echo "all is well" || echo "there were failures"
exit $failed
