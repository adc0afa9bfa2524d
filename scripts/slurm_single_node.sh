#!/usr/bin/env bash
# A throw-away Slurm cluster of one node, to test sweeps on: root on Debian or Ubuntu, no systemd needed.
#
#   scripts/slurm_single_node.sh start [DIR]           install what is missing, start everything, print the partition
#   eval "$(scripts/slurm_single_node.sh env [DIR])"   point this shell's sbatch, squeue ... (and run.py cluster=slurm) at it
#   scripts/slurm_single_node.sh stop [DIR]            cancel all jobs and stop every daemon that start has started
#
# Everything it writes lies in DIR (/tmp/slurm-test): configuration, state, sockets, keys and logs. Nothing of an existing
# Slurm, munge or MariaDB on the machine is touched, but the ports 6817 to 6819 and 33306 must be free.
#
# SLURM_TEST_CPUS (8) and SLURM_TEST_GPUS (2) are pretended: jobs share the real cores, and a copy of /dev/null stands in
# for each GPU, so that Slurm hands out indices in CUDA_VISIBLE_DEVICES as it does on a real node.
set -euo pipefail

DIR=${2:-/tmp/slurm-test}
CPUS=${SLURM_TEST_CPUS:-8}
GPUS=${SLURM_TEST_GPUS:-2}
HOST=$(hostname -s)
DATABASE_PORT=33306
MUNGE_SOCKET=$DIR/munge/socket
DATABASE_SOCKET=$DIR/mariadb.sock
export SLURM_CONF=$DIR/slurm.conf

# Run a command until it succeeds, for half a minute at most.
wait_for() {
    local until=$((SECONDS + 30))
    while [ $SECONDS -lt $until ]; do
        timeout 5 "$@" >/dev/null 2>&1 && return
        sleep 0.1
    done
    echo "$0: timed out: $*. Logs: $DIR/log" >&2
    return 1
}

# Is the daemon running whose process id DIR/NAME.pid holds? A zombie (no init to reap it) counts as stopped.
running() {
    local pid state
    pid=$(cat "$DIR/$1.pid" 2>/dev/null) || return 1
    state=$(awk '/^State/ {print $2}' "/proc/$pid/status" 2>/dev/null) || return 1
    [ "$state" != Z ]
}

start_munge() {
    running munge && return
    mkdir -p "$DIR/munge"
    [ -f "$DIR/munge/key" ] || (umask 077 && head -c 1024 /dev/urandom >"$DIR/munge/key")
    munged --socket="$MUNGE_SOCKET" --key-file="$DIR/munge/key" --pid-file="$DIR/munge.pid" --seed-file="$DIR/munge/seed" \
        --log-file="$DIR/log/munge.log" --force
    wait_for munge --no-input --socket="$MUNGE_SOCKET"
}

# The accounting database. Without sacct, submitit never learns that a task was killed and waits for it for ever.
start_database() {
    running mariadb && return
    [ -d "$DIR/database/mysql" ] ||
        mariadb-install-db --no-defaults --datadir="$DIR/database" --auth-root-authentication-method=normal --skip-test-db \
            >"$DIR/log/mariadb-install.log" 2>&1
    mariadbd --no-defaults --user=root --datadir="$DIR/database" --socket="$DATABASE_SOCKET" --pid-file="$DIR/mariadb.pid" \
        --bind-address=127.0.0.1 --port=$DATABASE_PORT --innodb-buffer-pool-size=64M --innodb-lock-wait-timeout=900 \
        >"$DIR/log/mariadb.log" 2>&1 &
    wait_for mariadb --no-defaults --socket="$DATABASE_SOCKET" --execute="select 1"
    mariadb --no-defaults --socket="$DATABASE_SOCKET" <<'SQL'
create user if not exists slurm@'127.0.0.1' identified by 'slurm';
create user if not exists slurm@localhost identified by 'slurm';
grant all on slurm_acct.* to slurm@'127.0.0.1';
grant all on slurm_acct.* to slurm@localhost;
SQL
}

write_slurmdbd_conf() {
    # slurmdbd refuses a configuration that others can read: it holds a password.
    (umask 077 && cat >"$DIR/slurmdbd.conf") <<CONF
AuthType=auth/munge
AuthInfo=socket=$MUNGE_SOCKET
DbdHost=$HOST
DbdAddr=127.0.0.1
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$DATABASE_PORT
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct
LogFile=$DIR/log/slurmdbd.log
PidFile=$DIR/slurmdbd.pid
CONF
}

# slurmd counts no GPU whose device file does not exist.
write_gres_conf() {
    local gpu
    : >"$DIR/gres.conf"
    for ((gpu = 0; gpu < GPUS; gpu++)); do
        [ -e "$DIR/nvidia$gpu" ] || mknod "$DIR/nvidia$gpu" c 1 3
        echo "Name=gpu File=$DIR/nvidia$gpu Flags=nvidia_gpu_env" >>"$DIR/gres.conf"
    done
}

# cred_expire: a requeued job may start again after as many seconds (120 by default).
# config_overrides: believe the CPUS written here, not the cores that are there.
# AccountingStoragePass: which munge the accounting clients use; AuthInfo does not reach them.
# KillWait: seconds between SIGTERM and SIGKILL. ReturnToService: a node that was down comes back by itself.
write_slurm_conf() {
    local memory
    memory=$(awk '/^MemTotal/ {print int($2 / 1024) - 512}' /proc/meminfo)
    cat >"$DIR/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$HOST(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$MUNGE_SOCKET,cred_expire=5
StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/spool
SlurmctldPidFile=$DIR/slurmctld.pid
SlurmdPidFile=$DIR/slurmd.pid
SlurmctldLogFile=$DIR/log/slurmctld.log
SlurmdLogFile=$DIR/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePass=$MUNGE_SOCKET
AccountingStorageTRES=gres/gpu
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2,bf_interval=2,sched_min_interval=0
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
KillWait=5
GresTypes=gpu
NodeName=$HOST NodeAddr=127.0.0.1 CPUs=$CPUS RealMemory=$memory Gres=gpu:$GPUS State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
}

start_slurm() {
    running slurmdbd || slurmdbd
    wait_for sacctmgr --noheader list cluster
    sacctmgr --noheader list cluster | grep -qw test || sacctmgr --immediate add cluster test >/dev/null
    running slurmctld || slurmctld -f "$SLURM_CONF"
    running slurmd || slurmd -f "$SLURM_CONF"
    wait_for sh -c 'sinfo --noheader --format=%T | grep -qE "idle|mixed|allocated"'
}

start() {
    [ "$(id -u)" = 0 ] || { echo "$0: must be run as root" >&2; exit 2; }
    "$(dirname "$0")/install_system.sh" slurm
    mkdir -p "$DIR"/{state,spool,log,database}
    start_munge
    start_database
    write_slurmdbd_conf
    write_gres_conf
    write_slurm_conf
    start_slurm
    sinfo --format="%P %a %D %T %c %G"
}

stop() {
    local daemon
    running slurmctld && scancel --user=root
    for daemon in slurmd slurmctld slurmdbd mariadb munge; do # who uses another stops before it
        running $daemon || continue
        kill "$(cat "$DIR/$daemon.pid")"
        for _ in $(seq 200); do
            running $daemon || break
            sleep 0.1
        done
    done
}

case ${1:-} in
    start) start ;;
    env) echo "export SLURM_CONF=$SLURM_CONF" ;;
    stop) stop ;;
    *) sed -n '2,12s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
