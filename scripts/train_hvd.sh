#!/usr/bin/env bash
# Trains Attention-56 on CIFAR-10 on 8 GPUs of this machine, kept in step by Horovod, which is built where it is missing.
# Arguments go to cifar10_train.py, e.g. scripts/train_hvd.sh --num-layers 92; NUM_GPUS=4 takes four GPUs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/eight_gpus.sh

.venv/bin/python -c "import horovod" 2>/dev/null || scripts/install_horovod.sh
if [[ -z ${OMP_NUM_THREADS:-} ]]; then  # each worker's share of the cores, not all of them for each
    share="from base.runtime import real_core_count; print(max(1, real_core_count() // $gpus))"
    export OMP_NUM_THREADS=$(.venv/bin/python -c "$share")
fi
# Workers find each other by gloo; GPUs are summed by NCCL, if install_horovod.sh has found CUDA.
exec .venv/bin/python -m scripts.horovodrun -np "$gpus" --gloo "${training[@]}" --sync horovod "$@"
