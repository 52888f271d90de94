#!/usr/bin/env bash
# A real SLURM with several virtual nodes on this machine: no systemd, no cgroups, no accounting.
#
#   slurm_ci.sh install   Debian's packages, by apt (root only)
#   slurm_ci.sh up        starts it, and returns when every node is idle
#   slurm_ci.sh down      ends it, and takes its names out of /etc/hosts
#
# SLURM_CI_DIR    its folder; up wants it absent or empty. Clients: SLURM_CONF=$SLURM_CI_DIR/slurm.conf
# SLURM_CI_NODES  how many nodes (2), named ci-node1, ci-node2, ...
# SLURM_CI_PORT   first of the SLURM_CI_NODES + 1 ports on the loopback that it uses (17000)
set -euo pipefail

folder=${SLURM_CI_DIR:?name a folder of its own}
nodes=${SLURM_CI_NODES:-2}
port=${SLURM_CI_PORT:-17000}
tag="# slurm-ci $folder"  # marks the lines that are ours in /etc/hosts
export SLURM_CONF=$folder/slurm.conf
export PATH=$PATH:/usr/sbin:/sbin

install_packages() {
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -q
  apt-get install -y -q --no-install-recommends munge slurmctld slurmd slurm-client </dev/null
}

write_configuration() {
  local host
  host=$(hostname -s)
  cat >"$SLURM_CONF" <<CONF
ClusterName=ci
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmUser=root
SlurmdUser=root
# A credential lives for 5 s, not 120: a requeued job waits that long before it may start again.
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$folder/munge/socket,cred_expire=5
AccountingStorageType=accounting_storage/none
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool/%n
SlurmctldPidFile=$folder/run/slurmctld.pid
SlurmdPidFile=$folder/run/slurmd-%n.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd-%n.log
MailProg=/bin/true
# What needs no rights of a container's host.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
# One host plays all nodes and claims more cores than it may have.
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1
# A job of partition high takes the place of one in main: USR2, then the end after GraceTime.
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
JobRequeue=1
ReturnToService=2
KillWait=5
SlurmdTimeout=10
MinJobAge=86400
# Another cluster's logs must not be met by the same job number.
FirstJobId=$(($(date +%s) % 1000000 + 1000))
NodeName=ci-node[1-$nodes] NodeHostname=$host NodeAddr=127.0.0.1 Port=[$((port + 1))-$((port + nodes))] CPUs=4 RealMemory=2000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES PriorityTier=1 GraceTime=15 MaxTime=INFINITE State=UP
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE State=UP
CONF
  echo 'CgroupPlugin=cgroup/v1' >"$folder/cgroup.conf"  # 22.05 knows no "disabled"; v1 touches nothing here
}

up() {
  if [ -e "$folder" ] && [ -n "$(ls -A "$folder")" ]; then
    echo "$folder is not empty: name another folder, or run 'down' and remove it" >&2
    exit 1
  fi
  umask 022
  mkdir -p "$folder"/{log,run,state,munge}
  for i in $(seq "$nodes"); do
    mkdir -p "$folder/spool/ci-node$i"
    echo "127.0.0.1 ci-node$i $tag" >>/etc/hosts
  done
  write_configuration
  # A munge of our own: no key in /etc, no system user.
  mungekey -c -k "$folder/munge/key"
  munged --key-file="$folder/munge/key" --socket="$folder/munge/socket" \
    --pid-file="$folder/run/munged.pid" --log-file="$folder/log/munged.log" \
    --seed-file="$folder/munge/seed"
  slurmctld
  for i in $(seq "$nodes"); do slurmd -N "ci-node$i"; done
  if ! wait_until 300 all_idle; then
    echo "the nodes did not become idle" >&2
    tail -n 20 "$folder"/log/*.log >&2
    exit 1
  fi
  sinfo -N
}

all_idle() { [ "$(sinfo -h -N -o %T | sort -u)" = idle ]; }

no_jobs() { [ -z "$(squeue -h)" ]; }

# wait_until TENTHS_OF_A_SECOND COMMAND...
wait_until() {
  local tries=$1
  shift
  for _ in $(seq "$tries"); do
    if "$@" 2>/dev/null; then return 0; fi
    sleep 0.1
  done
  return 1
}

gone() { ! kill -0 "$1"; }

# Ends daemons by their pid files only: what else runs on this machine is not ours.
stop() {
  local pid
  for pid in $(cat "$@" 2>/dev/null); do kill "$pid" 2>/dev/null || true; done
  for pid in $(cat "$@" 2>/dev/null); do
    wait_until 100 gone "$pid" || kill -9 "$pid" 2>/dev/null || true
  done
  rm -f "$@"
}

down() {
  if [ -s "$folder/run/slurmctld.pid" ] && kill -0 "$(cat "$folder/run/slurmctld.pid")" 2>/dev/null; then
    scancel -f -u root || true
    wait_until 150 no_jobs || true
  fi
  stop "$folder"/run/slurm*.pid
  stop "$folder/run/munged.pid"
  # Written over, not replaced: in a container the file is a mount.
  local others
  others=$(grep -vF -- "$tag" /etc/hosts || true)
  printf '%s\n' "$others" >/etc/hosts
}

case ${1:-} in
  install) install_packages ;;
  up) up ;;
  down) down ;;
  *) echo "usage: SLURM_CI_DIR=FOLDER $0 install|up|down" >&2; exit 2 ;;
esac
