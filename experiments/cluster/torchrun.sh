#!/bin/bash
# A stage, or stage=chain, without a scheduler: the same command on every node, NODES of them, this one number NODE (from 0).
# NODES=2 NODE=0 MASTER=node0 GPUS=8 experiments/cluster/torchrun.sh stage=mtp10 [setting ...]
# NODES=1:4 takes between one and four nodes, which may come and go (but for MASTER): training resumes on those that are there,
# RESTARTS (10) times at most: torchrun cannot tell a node that joins from a mistake.
set -euo pipefail
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-8}" OMP_WAIT_POLICY=PASSIVE HF_HUB_OFFLINE=1
# torchrun kills its processes that long after a signal, by default 30 s: too little for a large checkpoint
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-270}"
nodes="${NODES:-1}" gpus="${GPUS:-8}" master="${MASTER:-127.0.0.1}" port="${PORT:-29500}"
if [[ "$nodes" == *:* ]]; then
    : "${MASTER:?NODES=$nodes needs MASTER=HOST, where the nodes meet}" # whoever meets there is one job to a run folder
    meeting=("--rdzv-backend=c10d" "--rdzv-endpoint=$master:$port" "--rdzv-id=$master-$port" "--max-restarts=${RESTARTS:-10}")
    number='${oc.env:GROUP_WORLD_SIZE}' # as many as there are, told to each process
    # torch 2.13's agents share one store and write its address for the first round alone: a node that joins waits in vain for it
    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
else
    meeting=("--node-rank=${NODE:-0}" "--master-addr=$master" "--master-port=$port")
    number="$nodes"
fi
exec torchrun --nnodes="$nodes" --nproc-per-node="$gpus" "${meeting[@]}" \
    --signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 -m vita_audio_pl.train scale=published \
    "trainer.num_nodes=$number" "trainer.devices=$gpus" "$@"
