# What train_bps.sh and train_hvd.sh, which read this, have in common: set-up and recipe. NUM_GPUS=N is for N GPUs
# instead of 8.
#
# The learning rate is the published 1.6 as it took effect. In that run gradients were divided by the batch of all
# workers (1,024) and by their number (8) once more; here they are divided by the batch alone, so that 0.2 is the same,
# with 8 times its weight decay of 0.0001, which was not divided.
gpus=${NUM_GPUS:-8}
training=(.venv/bin/python cifar10_train.py --num-layers 56 --num-gpus 1 --workers 2 --batch-size 128 --epochs 200
    --lr 0.2 --wd 0.0008 --lr-mode cosine --warmup-epochs 10 --mix-up 1 --alpha 1.0)

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
