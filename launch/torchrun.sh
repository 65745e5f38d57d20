#!/usr/bin/env bash
# Predict with one process per GPU on this machine, or on several:
#
#   launch/torchrun.sh data=jsonl data.path=prompts.jsonl model=llada_8b_instruct
#
# On several machines, run it on each with the same values except for NODE_RANK:
#
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=first-machine DLM_RUN_DIR=/shared/run JOB=7 launch/torchrun.sh ...
#
# DLM_RUN_DIR is a folder shared by all machines; the same command with another JOB resumes the run in it.
#
#   GPUS          processes on this machine (default: one per GPU; 1 without GPUs)
#   MASTER_PORT   port of the first machine (29500)
set -euo pipefail

die() {
  printf 'torchrun.sh: %s\n' "$*" >&2
  exit 2
}
case ${1:-} in
  -h | --help)
    sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p}' "$0"
    exit 0
    ;;
esac
for argument in "$@"; do
  case $argument in
    trainer=*) die "$argument: one process a GPU is trainer=ddp, set here; leave it out" ;;
    [!-]*=*) ;;
    *) die "$argument is no key=value; see launch/torchrun.sh --help" ;;
  esac
done
command -v python >/dev/null || die "python is not on the PATH: activate the environment in which dlm is installed"

NNODES=${NNODES:-1}
[[ $NNODES =~ ^[1-9][0-9]*$ ]] || die "NNODES=$NNODES is no number of machines"
if [ "$NNODES" -gt 1 ]; then
  [ -n "${DLM_RUN_DIR:-}" ] || die "set DLM_RUN_DIR to a folder that all machines see"
  [ -n "${MASTER_ADDR:-}" ] || die "set MASTER_ADDR to the first machine"
  [ -n "${NODE_RANK:-}" ] || die "set NODE_RANK to this machine: 0, 1, ..."
  [ -n "${JOB:-}" ] || die "set JOB to a name for this start, alike on all machines"
  if ! [[ $NODE_RANK =~ ^[0-9]+$ ]] || [ "$NODE_RANK" -ge "$NNODES" ]; then
    die "NODE_RANK=$NODE_RANK is none of the $NNODES machines: 0 to $((NNODES - 1))"
  fi
  export DLM_RUN_DIR
  where=(--nnodes "$NNODES" --node-rank "$NODE_RANK" --master-addr "$MASTER_ADDR"
    --master-port "${MASTER_PORT:-29500}" --rdzv-id "$JOB")
  export DLM_ATTEMPT="torchrun-$JOB"
else
  where=(--standalone)
fi
GPUS=${GPUS:-$(python -c 'import torch; print(max(1, torch.cuda.device_count()))')}
[[ $GPUS =~ ^[1-9][0-9]*$ ]] || die "GPUS=$GPUS is no number of processes"

exec python -m torch.distributed.run "${where[@]}" --nproc-per-node "$GPUS" -m dlm.predict trainer=ddp "$@"
