#!/usr/bin/env bash
# local_cluster.sh start|stop FOLDER: a real one-node SLURM (munge, slurmctld, slurmd) on loopback,
# for tests. Needs root and the packages slurm-wlm and munge; writes into FOLDER only. `start`
# prints
# the line that points clients to it.
set -euo pipefail
action=$1
mkdir -p "$2"
folder=$(cd "$2" && pwd)
PORT=${SLURM_TEST_PORT:-16817}

stop_one() {  # stop_one PIDFILE: end the process that we started, and wait for it
    [ -f "$1" ] || return 0
    local pid; pid=$(cat "$1")
    kill "$pid" 2>/dev/null || true
    for _ in $(seq 50); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
    rm -f "$1"
}

stop() {
    stop_one "$folder/slurmctld.pid"
    stop_one "$folder/slurmd.pid"
    stop_one "$folder/munged.pid"
}

start() {
    local host; host=$(hostname -s)
    mkdir -p "$folder"/{state,spool,log}
    chmod 755 "$folder" "$folder/log"
    # munge of our own: own key, own socket, as the user who runs this
    dd if=/dev/urandom of="$folder/munge.key" bs=1 count=1024 status=none
    chmod 400 "$folder/munge.key"
    munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" \
        --pid-file="$folder/munged.pid" \
        --log-file="$folder/log/munged.log" --seed-file="$folder/munge.seed" --num-threads=2
    cat >"$folder/slurm.conf" <<CONF
ClusterName=local
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$PORT
SlurmdPort=$((PORT + 1))
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SchedulerType=sched/backfill
SchedulerParameters=requeue_delay=1,sched_interval=1,bf_interval=1,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobRequeue=1
KillWait=5
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(env -u OMP_NUM_THREADS nproc) State=UNKNOWN
PartitionName=all Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF
    export SLURM_CONF="$folder/slurm.conf"
    slurmctld -i
    slurmd
    for _ in $(seq 100); do
        case $(sinfo -h -o %T 2>/dev/null) in
        idle*) echo "export SLURM_CONF=$folder/slurm.conf"; return ;;
        esac
        sleep 0.2
    done
    echo "SLURM did not come up; its logs are in $folder/log" >&2
    tail -n 5 "$folder"/log/*.log >&2
    stop
    exit 1
}

case $action in
start) start ;;
stop) stop ;;
*) echo "usage: $0 start|stop FOLDER" >&2; exit 2 ;;
esac
