#!/bin/bash
# Moves a redis between two guests with nothing but criu, or with podman, as an administrator's
# script would. Run in the guests by bench_move.py.
#
#   guest-move.sh net ADDRESS MAC up|waiting     the network namespace; waiting: without ARP
#   guest-move.sh start criu|podman              redis in it
#   guest-move.sh out criu|podman TO             freeze, dump, send; prints times in ms
#   guest-move.sh in criu|podman                 receive, restore, announce; leaves /run/bench/in
#   guest-move.sh clean                          nothing of it stays
set -euo pipefail

NS=bench
DIR=/dev/shm/bench
PORT=9000
REDIS="/usr/bin/redis-server --port 6379 --bind * --protected-mode no --save '' --appendonly no"

now() { date +%s%N; }
ms() { echo $((($2 - $1) / 1000000)); }
inside() { nsenter --net=/run/netns/$NS "$@"; }

net() {
    ip netns add $NS
    ip link add bench0 link eth0 address "$2" type macvlan mode bridge
    ip link set bench0 netns $NS
    inside sysctl -qw net.ipv6.conf.all.disable_ipv6=1
    ip -n $NS link set lo up
    [ "$3" = up ] || ip -n $NS link set bench0 arp off
    ip -n $NS addr add "$1/24" dev bench0
    ip -n $NS link set bench0 up
    echo "$1" >/run/bench/address
}

announce() {
    ip -n $NS link set bench0 arp on
    inside arping -q -U -c 1 -I bench0 "$(cat /run/bench/address)"
}

start() {
    case $1 in
    criu)
        # A PID namespace, so that no PID is taken in the other guest.
        eval "nsenter --net=/run/netns/$NS unshare --pid --ipc --fork setsid ${REDIS/\*/\\*}" \
            </dev/null >/dev/null 2>&1 &
        ;;
    podman)
        podman run -d --name bench --network ns:/run/netns/$NS --log-driver none \
            localhost/bench-redis /usr/bin/redis-server --port 6379 --bind '*' \
            --protected-mode no --save '' --appendonly no >/dev/null
        ;;
    esac
}

out() {
    local t0 t1 t2 bytes
    mkdir -p $DIR
    t0=$(now)
    case $1 in
    criu)
        inside criu dump -t "$(pgrep -x redis-server)" -D $DIR -o dump.log --tcp-established \
            --network-lock nftables --manage-cgroups=ignore
        ;;
    podman)
        podman container checkpoint --export $DIR/bench.tar --compress none --tcp-established \
            bench >/dev/null
        ;;
    esac
    t1=$(now)
    bytes=$(du -sb $DIR | cut -f1)
    tar -C $DIR -c . | socat -u -b 1048576 - "TCP:$2:$PORT"
    t2=$(now)
    echo "{\"dump_ms\": $(ms "$t0" "$t1"), \"copy_ms\": $(ms "$t1" "$t2"), \"bytes\": $bytes}"
    clean
}

in_() {
    local t0 t1
    mkdir -p $DIR
    socat -u -b 1048576 "TCP-LISTEN:$PORT,reuseaddr" - | tar -C $DIR -x
    t0=$(now)
    case $1 in
    criu)
        inside criu restore -d -D $DIR -o restore.log --tcp-established \
            --network-lock nftables --manage-cgroups=ignore
        ;;
    podman)
        podman container restore --import $DIR/bench.tar --tcp-established >/dev/null
        ;;
    esac
    announce
    t1=$(now)
    rm -rf $DIR
    echo "{\"restore_ms\": $(ms "$t0" "$t1")}" >/run/bench/in.new
    mv /run/bench/in.new /run/bench/in
}

clean() {
    if command -v podman >/dev/null && podman container exists bench 2>/dev/null; then
        podman rm -f -t 0 bench >/dev/null 2>&1 || true
    fi
    pkill -9 -x redis-server || true
    ip netns del $NS 2>/dev/null || true
    rm -rf $DIR /run/bench/in
}

mkdir -p /run/bench
case $1 in
net) net "$2" "$3" "$4" ;;
start) start "$2" ;;
out) out "$2" "$3" ;;
in) in_ "$2" ;;
clean) clean ;;
esac
