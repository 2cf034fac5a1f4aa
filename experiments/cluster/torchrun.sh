#!/bin/bash
# A stage, or stage=chain, without a scheduler: the same command on every node, NODES of them, this one number NODE (from 0).
# NODES=2 NODE=0 MASTER=node0 GPUS=8 experiments/cluster/torchrun.sh stage=mtp10 [setting ...]
set -euo pipefail
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-8}" OMP_WAIT_POLICY=PASSIVE HF_HUB_OFFLINE=1
nodes="${NODES:-1}" gpus="${GPUS:-8}"
exec torchrun --nnodes="$nodes" --node-rank="${NODE:-0}" --nproc-per-node="$gpus" \
    --master-addr="${MASTER:-127.0.0.1}" --master-port="${PORT:-29500}" -m vita_audio_pl.train scale=published \
    "trainer.num_nodes=$nodes" "trainer.devices=$gpus" "$@"
