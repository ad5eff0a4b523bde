#!/usr/bin/env python3
"""Time the training steps of workers in step, and what they exchange. Run by a launcher, or alone."""

import json
import os
import sys
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # where the script is run by its path

from base.errors import UserError, run_command
from base.flags import HelpFormatter, OneLineParser, batch_size, non_negative_int, positive_int
from base.runtime import prepare_mxnet
from scripts.benchmark import SIZES
from training.flags import DEPTH_HELP, training_parser


def parse_arguments():
    """This script's flags, and the training scripts' others at their defaults."""
    parser = OneLineParser(description=__doc__, formatter_class=HelpFormatter, allow_abbrev=False)
    # not --net, which horovodrun would take for its own --network-interface
    nets = [*SIZES, "small"]
    parser.add_argument(
        "--family", dest="net", choices=nets, default="cifar", help="of networks; small: three convolutions"
    )
    parser.add_argument("--num-layers", type=positive_int, default=56, help=DEPTH_HELP)
    parser.add_argument("--num-gpus", type=non_negative_int, default=0, help="GPUs of each worker; 0 is the CPU")
    parser.add_argument("--batch-size", "-b", type=batch_size, default=16, help="images a step, for each device")
    parser.add_argument("--steps", type=positive_int, default=5, help="measurements of each thing, taken in turns")
    parser.add_argument("--gradient-compression", choices=["none", "fp16"], default="none", help="how gradients travel")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    args = parser.parse_args()
    args.input_size = SIZES.get(args.net, SIZES["cifar"])[0]
    training_parser("", datasets=["cifar10"]).parse_args(["--seed", "0"], args)  # fills in what is missing
    args.settings = {}
    return args


def figures_of(measured, args):
    """The medians of what `measure` returns, and that itself."""
    medians = {name: median(values) for name, values in measured["seconds"].items()}
    return {
        "images_per_second": measured["images"] / medians["step"],
        "communication_share": medians["communication"] / (medians["communication"] + medians["computation"]),
        "exchanged_bytes": measured["gradient_bytes"] // (2 if args.gradient_compression == "fp16" else 1),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "medians": medians,
        **measured,
    }


def lines_of(figures, args):
    medians = figures["medians"]
    network = "small network" if args.net == "small" else f"Attention-{args.num_layers}, {args.net}"
    size = f"{args.input_size}x{args.input_size}"
    lines = [
        f"{network}, {size}, {figures['images']} images a step, workers {figures['workers']}, "
        f"OMP_NUM_THREADS {figures['omp_num_threads'] or 'not set'}",
        f"  training       {figures['images_per_second']:8.1f} images/s   step {medians['step']:.3f} s",
        f"  in two parts   computation {medians['computation']:.3f} s, communication {medians['communication']:.3f} s: "
        f"{figures['communication_share']:.1%}",
        f"  gradients      {figures['gradient_bytes']:,} bytes, arrays: {figures['arrays']}, "
        f"exchanged as {figures['exchanged_bytes']:,}",
    ]
    if "one array" in medians:
        lines.append(
            f"  one array      of {figures['gradient_bytes']:,} bytes is summed in {medians['one array']:.3f} s"
        )
    return lines


def main():
    args = parse_arguments()
    prepare_mxnet(use_gpus=args.num_gpus > 0)
    from scripts.measured_steps import measure
    from training.commands import join_group

    with join_group(args) as group:
        if group.size == 1 and args.gradient_compression != "none":
            raise UserError(f"--gradient-compression {args.gradient_compression}: a worker alone sends nothing")
        figures = figures_of(measure(group, args), args)
        if group.is_main_process:
            print(json.dumps(figures) if args.json else "\n".join(lines_of(figures, args)), flush=True)


if __name__ == "__main__":
    run_command(main)
