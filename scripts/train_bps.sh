#!/usr/bin/env bash
# Trains Attention-56 on CIFAR-10 on 8 GPUs of this machine, kept in step by BytePS, which is built where it is missing.
# Arguments go to cifar10_train.py, e.g. scripts/train_bps.sh --num-layers 92; NUM_GPUS=4 takes four GPUs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/eight_gpus.sh

.venv/bin/python -c "import byteps" 2>/dev/null || scripts/install_byteps.sh
exec .venv/bin/python scripts/launch.py --num-gpus "$gpus" "${training[@]}" --sync byteps "$@"
