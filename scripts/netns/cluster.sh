#!/usr/bin/env bash
# cluster.sh COMMAND: several hosts on one machine, as network namespaces with rate-limited links,
# and MPI jobs across them over TCP.
#   up [HOSTS] [MBIT]     make HOSTS namespaces (default 4), each with a link of MBIT Mbit/s
#                         (default 200) to one switch
#   run RANKS CMD...      mpirun CMD on RANKS ranks, round-robin on the hosts
#   down                  remove everything, and end what still runs on these hosts
#   possible              exit status 0 if this machine allows it
# Needs root and iproute2. Ranks are started through Open MPI's remote-shell agent: this script
# again, as `agent HOST CMD`.
set -euo pipefail
prefix=mpidl-host net=10.77.0 bridge=mpidl-switch
hosts=${MPIDL_HOSTS:-4}
self=$(readlink -f "${BASH_SOURCE[0]}")

possible() {
    [ "$(id -u)" = 0 ] && command -v ip tc unshare >/dev/null || return 1
    ip netns add mpidl-probe 2>/dev/null || return 1
    local fine=0
    { ip link add mpidl-probe0 type veth peer name mpidl-probe1 &&
        tc qdisc add dev mpidl-probe0 root tbf rate 1mbit burst 10kb latency 50ms
    } 2>/dev/null || fine=1
    ip link del mpidl-probe0 2>/dev/null || true
    ip netns del mpidl-probe
    return $fine
}

limit() {  # limit MBIT COMMAND...: shape what leaves through this end of a link
    "${@:2}" root tbf rate "$1mbit" burst 32kb latency 400ms
}

up() {
    local hosts=${1:-4} mbit=${2:-200} i
    down
    ip link add $bridge type bridge
    ip addr add $net.254/24 dev $bridge
    ip link set $bridge up
    for i in $(seq "$hosts"); do
        ip netns add $prefix$i
        ip link add mpidl$i type veth peer name eth0 netns $prefix$i
        ip link set mpidl$i master $bridge up
        ip -n $prefix$i addr add $net.$i/24 dev eth0
        ip -n $prefix$i link set eth0 up
        ip -n $prefix$i link set lo up
        limit "$mbit" tc qdisc add dev mpidl$i
        limit "$mbit" ip netns exec $prefix$i tc qdisc add dev eth0
    done
}

down() {
    local i
    for i in $(ip netns list | sed -n "s/^$prefix\([0-9]*\).*/\1/p"); do
        # a daemon of Open MPI sometimes outlives its job; its host would live on with it
        ip netns pids $prefix$i | xargs -r kill -9
        ip netns del $prefix$i
        ip link del mpidl$i 2>/dev/null || true
    done
    ip link del $bridge 2>/dev/null || true
}

run() {
    local ranks=$1 list
    shift
    list=$(ip netns list | sed -n "s/^$prefix\([0-9]*\).*/$net.\1/p" | sort -t. -k4 -n |
        sed 's/$/:64/' | paste -sd,)
    exec env OMPI_MCA_btl=tcp,sm,self OMPI_MCA_pml=ob1 OMPI_MCA_btl_tcp_if_include=$net.0/24 \
        mpirun --prtemca plm_ssh_agent "$self agent" --prtemca prte_if_include $net.0/24 \
        --prtemca plm_ssh_no_tree_spawn 1 \
        --map-by node:oversubscribe --host "$list" -n "$ranks" "$@"
}

# agent HOST CMD: what ssh would do; every host has its own name, network and temporary folder
agent() {
    local host=$1 number=${1##*.}
    shift
    export TMPDIR=/tmp/$prefix$number
    mkdir -p "$TMPDIR"
    exec ip netns exec $prefix"$number" unshare --uts \
        bash -c 'hostname "$1"; shift; eval "$@"' _ "$prefix$number" "$@"
}

"$@"
