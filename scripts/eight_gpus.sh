# What train_bps.sh and train_hvd.sh, which read this, have in common: set-up and recipe. NUM_GPUS=N is for N GPUs
# instead of 8; the rate follows the images of a step.
gpus=${NUM_GPUS:-8}
training=(.venv/bin/python cifar10_train.py --recipe tricks --num-layers 56 --num-gpus 1)

if [[ ! $gpus =~ ^[1-9][0-9]*$ ]]; then
    echo "error: NUM_GPUS=$gpus is no number of GPUs" >&2
    exit 2
fi
scripts/setup.sh
# Missing GPUs are named once, here, and before minutes of building. With --num-gpus 0 the workers use the CPU.
if [[ " $* " != *" --num-gpus"[\ =]"0 "* ]]; then
    .venv/bin/python - "$gpus" <<'PYTHON'
import sys

from base.errors import run_command
from base.runtime import prepare_mxnet


def main():
    prepare_mxnet()
    from base.devices import contexts

    contexts(int(sys.argv[1]))


run_command(main)
PYTHON
fi
