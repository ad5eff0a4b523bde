#!/usr/bin/env bash
# Sets up .venv and trains Attention-56 on handwritten digits until it reads the held-out fifth of them well.
# Arguments go to cifar10_train.py, e.g. scripts/demo.sh --epochs 5
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [[ " $*" =~ \ --(log-dir|run-name|resume|eval-only) ]]; then
    echo "error: --${BASH_REMATCH[1]} is not for the demo, which names its run itself: python3 cifar10_train.py" >&2
    exit 2
fi
scripts/setup.sh
# Where the processor is faster in bfloat16, that reads the digits as well. GPUs have no use for the flag.
precision=()
if [[ "$*" != *--num-gpus* ]] && .venv/bin/python -c '
from base.runtime import bfloat16_pays
raise SystemExit(not bfloat16_pays())'; then
    precision=(--bfloat16)
fi
place=()  # of the data set, for the pictures too
for word; do
    if [[ ${before:-} == --data-dir ]]; then place=(--data-dir "$word"); fi
    if [[ $word == --data-dir=* ]]; then place=("$word"); fi
    before=$word
done
run=demo_$(date +%Y%m%d%H%M%S)
.venv/bin/python cifar10_train.py --dataset digits --num-layers 56 --epochs 3 --batch-size 16 \
    --lr 0.03 --lr-mode cosine --warmup-epochs 0.2 --epsilon 0.1 --seed 1 --viz-period 1 --run-name "$run" \
    ${precision[@]+"${precision[@]}"} "$@"
.venv/bin/python -m scripts.plot_curves "log/text/$run.csv" >/dev/null
.venv/bin/python -m scripts.visualize_attention --params "log/params/$run/best.params" --count 4 \
    --out "log/pictures/$run" ${place[@]+"${place[@]}"} >/dev/null

echo
echo "Accuracy curve:   log/text/$run-accuracy.png"
echo "Loss curve:       log/text/$run-loss.png"
echo "Attention masks:  log/pictures/$run/overview-masks.png"
echo "Best parameters:  log/params/$run/best.params"
echo "TensorBoard:      .venv/bin/tensorboard --host localhost --logdir=./log/board/$run"
