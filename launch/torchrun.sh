#!/usr/bin/env bash
# Predict with one process a GPU on this machine, or on several:
#
#   launch/torchrun.sh data=jsonl data.path=prompts.jsonl model=llada_8b_instruct
#
# On each of several machines, with the same values everywhere but NODE_RANK:
#
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=first-machine DLM_RUN_DIR=/shared/run JOB=7 launch/torchrun.sh ...
#
# DLM_RUN_DIR is a folder that all machines see; the same command resumes what is there under another JOB.
set -euo pipefail

NNODES=${NNODES:-1}
GPUS=${GPUS:-$(python -c 'import torch; print(max(1, torch.cuda.device_count()))')}

if [ "$NNODES" -gt 1 ]; then
  : "${DLM_RUN_DIR:?set DLM_RUN_DIR to a folder that all machines see}"
  : "${MASTER_ADDR:?set MASTER_ADDR to the first machine}"
  : "${NODE_RANK:?set NODE_RANK to this machine: 0, 1, ...}"
  : "${JOB:?set JOB to a name for this start, alike on all machines}"
  export DLM_RUN_DIR
  where=(--nnodes "$NNODES" --node-rank "$NODE_RANK" --master-addr "$MASTER_ADDR"
         --master-port "${MASTER_PORT:-29500}" --rdzv-id "$JOB")
  export DLM_ATTEMPT="torchrun-$JOB"
else
  where=(--standalone)
fi

exec python -m torch.distributed.run "${where[@]}" --nproc-per-node "$GPUS" -m dlm.predict trainer=ddp "$@"
