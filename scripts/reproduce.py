"""Train a row of the published tricks table: python -m scripts.reproduce --row 11 --num-gpus 8

The rows are those of scripts/published_tricks.csv, whose first lines name the source. Its rates were divided by the
number of its workers, 8, once more than gradients are here: a command has the rate as it took effect. Its weight decay
was not divided: beside an eighth of the rate it acted as 8 times the decay.
"""

import csv
import os
import shlex
import sys
from collections import namedtuple
from pathlib import Path

from base.errors import UserError, run_command
from base.flags import OneLineParser, non_negative_int, positive_int
from scripts.experiments import ROOT, ended_well, finished
from training.run.files import RunPaths

PUBLISHED = Path(__file__).with_name("published_tricks.csv")
WORKERS = 8  # of the published runs
EPOCHS = 200  # of the same
WD = 1e-4  # of the same

Row = namedtuple("Row", ["layers", "batch_size", "lr", "warmup", "mix_up", "alpha", "epsilon", "max_accuracy"])
Row.__doc__ = """A published run.

layers : int
batch_size : int
    Of all workers.
lr : float
    As published: 8 times the rate that took effect.
warmup : int
    Epochs.
mix_up : bool
alpha, epsilon : float
    Of mixup and of label smoothing.
max_accuracy : float
    On the test images, the best of all epochs.
"""

Scale = namedtuple("Scale", ["epochs", "divisor", "limit"])
Scale.__doc__ = """How much of a row is trained.

epochs : int
divisor : int
    The published batch is so many times as large.
limit : int or None
    Images of each split.
"""

# Small has a thirty-second of the images and of the batch: as many steps an epoch as in full, at the same rate.
SCALES = {"full": Scale(EPOCHS, 1, None), "small": Scale(10, 32, 1562)}


def main():
    parser = OneLineParser(
        prog="python -m scripts.reproduce",
        description="Train a row of the published tricks table.",
        epilog="The same command goes on with what was stopped.",
        allow_abbrev=False,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--row", type=positive_int, help="which row, from 1 on")
    what.add_argument("--table", action="store_true", help="print the table, with the accuracies of finished runs")
    parser.add_argument("--scale", choices=SCALES, default="full", help="all of it, or a subset for one CPU")
    parser.add_argument("--num-gpus", type=non_negative_int, default=0, help="1, 2, 4 or 8; 0 is the CPU (default)")
    parser.add_argument("--data-dir", default="./data/sets", help="folder of the data sets")
    parser.add_argument("--log-dir", default="./log/tricks", type=Path, help="folder of the runs")
    parser.add_argument("--dry-run", action="store_true", help="print the command alone")
    args = parser.parse_args()
    if args.table and (args.dry_run or args.num_gpus):
        parser.error("--table trains nothing: --dry-run and --num-gpus are for --row")
    rows = published_rows()
    if args.table:
        print(table(rows, args.scale, args.log_dir))
        return
    if args.row > len(rows):
        raise UserError(f"--row {args.row}: the table has rows 1 to {len(rows)}")
    run = run_name(args.scale, args.row)
    flags = row_flags(rows[args.row - 1], SCALES[args.scale], args.num_gpus)
    place = ["--data-dir", args.data_dir, "--log-dir", str(args.log_dir)]
    from training.run.resume import begin_or_resume  # which imports numpy

    training = ["cifar10_train.py", *begin_or_resume(args.log_dir, run), *flags, *place]
    print(shlex.join(["python3", *training]), flush=True)
    if not args.dry_run:
        # This process becomes the training: its signals, its output and its exit status.
        os.execv(sys.executable, [sys.executable, str(ROOT / training[0]), *training[1:]])


def published_rows():
    """The `Row`s of the published table, in its order."""
    with open(PUBLISHED, newline="") as file:
        lines = csv.DictReader(line for line in file if not line.startswith("#"))
        return [
            Row(
                int(line["layers"]),
                int(line["batch_size"]),
                float(line["lr"]),
                int(line["warmup"]),
                line["mix_up"] == "1",
                float(line["alpha"]),
                float(line["epsilon"] or 0),
                float(line["max_accuracy"]),
            )
            for line in lines
        ]


def run_name(scale, number):
    return f"tricks-{scale}-{number}"


def row_flags(row, scale, num_gpus):
    """The flags of cifar10_train.py for a `Row` at a `Scale`, a list of str, but for where the run is.

    In full the images of a step are those of the 8 workers, each worker's as one batch: on fewer devices these are
    added up, so that batch normalization sees as many images at a time.

    Raises UserError for a number of GPUs over which the workers' batches cannot be spread.
    """
    devices = max(1, num_gpus)
    batch, batches = row.batch_size // scale.divisor, 1
    if scale.limit is None:
        if WORKERS % devices:
            raise UserError(f"--num-gpus {num_gpus}: the batches of {WORKERS} workers go to 1, 2, 4 or 8 devices")
        batch, batches = row.batch_size // WORKERS, WORKERS // devices
    elif devices > 1:
        raise UserError(f"--num-gpus {num_gpus}: the small scale is for one device")
    values = {
        "dataset": "cifar10",
        "num-layers": row.layers,
        "epochs": scale.epochs,
        "batch-size": batch,
        "accumulate": batches,
        "lr": f"{row.lr / WORKERS:g}",
        "wd": f"{WD * WORKERS:g}",
        "lr-mode": "cosine",
        "warmup-epochs": f"{row.warmup * scale.epochs / EPOCHS:g}",
        "mix-up": int(row.mix_up),
        "alpha": f"{row.alpha:g}",
        "epsilon": f"{row.epsilon:g}",
        "save-period": 0,
        "num-gpus": num_gpus,
    }
    if scale.limit is not None:
        values["limit"] = scale.limit
    return [text for name, value in values.items() for text in (f"--{name}", str(value))]


def table(rows, scale, log_dir):
    """The published table in Markdown, with the best accuracies of the finished runs of a scale, blank elsewhere.

    Raises UserError for a finished run whose CSV cannot be read.
    """
    titles = ["Row", "Layers", "Batch", "lr", "Rate in effect", "Warm-up", "Mixup's alpha", "Epsilon", "Published"]
    titles.append(f"Here, {scale}")
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for number, row in enumerate(rows, start=1):
        measured = measured_accuracy(run_name(scale, number), SCALES[scale].epochs, log_dir)
        cells = [
            *(number, row.layers, row.batch_size, f"{row.lr:g}", f"{row.lr / WORKERS:g}", row.warmup),
            f"{row.alpha:g}" if row.mix_up else "",
            f"{row.epsilon:g}" if row.epsilon else "",
            f"{row.max_accuracy:.4f}",
            "" if measured is None else f"{measured:.4f}",
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def measured_accuracy(run, epochs, log_dir):
    """The best validation accuracy of a finished run; None where it is not finished.

    Raises UserError where it is, and its CSV cannot be read.
    """
    if done := finished(run, epochs, log_dir):
        return max(row["val_accuracy"] for row in done)
    path = RunPaths(log_dir, run).csv
    if path.is_file() and ended_well(run, log_dir) and len(path.read_bytes().splitlines()) > epochs:
        raise UserError(f"{path} is damaged: it has all epochs, and one that cannot be read")
    return None


if __name__ == "__main__":
    run_command(main)
