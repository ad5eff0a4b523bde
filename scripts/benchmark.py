#!/usr/bin/env python3
"""Time a network's training step and inference on a CPU, beside what its convolutions alone take."""

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # where the script is run by its path

from base.errors import UserError, run_command
from base.flags import HelpFormatter, OneLineParser, batch_size, positive_int
from base.runtime import prepare_mxnet
from training.flags import DEPTH_HELP

# Input size by default, and what others must be multiples of and at least.
SIZES = {"cifar": (32, 8, 16), "imagenet": (224, 32, 64)}
FORMS = {
    "fast": "as the training scripts have it",
    "saving": "with their flag --memory-saving",
    "bfloat16": "with their flag --bfloat16",
    "plain": "MXNet's own interpolation, sigmoid, thread count and memory",
}


def parse_arguments():
    parser = OneLineParser(description=__doc__, formatter_class=HelpFormatter, allow_abbrev=False)
    parser.add_argument("--net", choices=list(SIZES), default="cifar", help="family of the network")
    parser.add_argument("--num-layers", type=positive_int, default=56, help=DEPTH_HELP)
    parser.add_argument("--batch-size", "-b", type=batch_size, default=64, help="images a step")
    parser.add_argument("--input-size", type=positive_int, help="pixels (default: 32 for cifar, 224 for imagenet)")
    parser.add_argument("--rounds", type=positive_int, default=5, help="measurements of each thing, taken in turns")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    mode = parser.add_mutually_exclusive_group()
    forms = "; ".join(f"{form}: {meaning}" for form, meaning in FORMS.items())
    mode.add_argument("--form", choices=list(FORMS), default="fast", help=f"the network's form; {forms}")
    mode.add_argument(
        "--plain",
        action="store_true",
        help="measure the plain form too, in turns with the fast one, each in processes of its own",
    )
    mode.add_argument("--memory-saving", action="store_true", help="the same with the saving form")
    mode.add_argument("--bfloat16", action="store_true", help="the same with the form in bfloat16")
    mode.add_argument(
        "--loader", action="store_true", help="measure the loader alone and what it costs a training beside it"
    )
    parser.add_argument("--profile", action="store_true", help="the time of a training step of --form by operator")
    args = parser.parse_args()
    if args.profile and (args.plain or args.memory_saving or args.bfloat16 or args.loader):
        parser.error("--profile is of one form: choose it with --form")
    default, multiple, least = SIZES[args.net]
    args.input_size = args.input_size or default
    if args.input_size % multiple or args.input_size < least:
        parser.error(f"--input-size {args.input_size}: --net {args.net} takes multiples of {multiple} from {least} on")
    if args.loader and args.net != "cifar":
        parser.error("--loader measures CIFAR's loader: it needs --net cifar")
    return args


def measure_both(other, args):
    """What `scripts.measurements.measure_form` returns of the fast form and an ``other``, {form: ...}.

    Each of the ``args.rounds`` turns of a form is a process of its own.
    """
    flags = ["--net", args.net, "--num-layers", args.num_layers, "--batch-size", args.batch_size]
    flags += ["--input-size", args.input_size, "--rounds", 1, "--json"]
    turns = {form: [] for form in ("fast", other)}
    for _ in range(args.rounds):
        for form in turns:
            command = [sys.executable, __file__, "--form", form, *map(str, flags)]
            child = subprocess.run(command, stdout=subprocess.PIPE, text=True)
            if child.returncode < 0:
                raise UserError(f"the process that measured the {form} form was ended by signal {-child.returncode}")
            if child.returncode:
                sys.exit(child.returncode)  # it has said why
            turns[form].append(json.loads(child.stdout)[form])
    return {
        form: {
            "seconds": {name: [turn["seconds"][name][0] for turn in results] for name in results[0]["seconds"]},
            "peak_memory": median(turn["peak_memory"] for turn in results),
            "omp_num_threads": results[0]["omp_num_threads"],
        }
        for form, results in turns.items()
    }


def ratio(seconds, name, other):
    """Median over the turns of how many times as long one thing took as another."""
    return median(one / two for one, two in zip(seconds[name], seconds[other]))


def form_figures(measured, batch_size):
    """The medians of what `scripts.measurements.measure_form` returns, and that itself."""
    seconds = measured["seconds"]
    return {
        "training_images_per_second": batch_size / median(seconds["training"]),
        "inference_images_per_second": batch_size / median(seconds["inference"]),
        "step_to_convolutions": ratio(seconds, "training", "convolutions"),
        "inference_to_convolutions": ratio(seconds, "convolutions forward", "inference"),
        **measured,
    }


def form_lines(form, figures):
    seconds = {name: median(values) for name, values in figures["seconds"].items()}
    precision = " in float32" if form == "bfloat16" else ""
    return [
        f"{form} form, OMP_NUM_THREADS {figures['omp_num_threads'] or 'not set'}",
        f"  training      {figures['training_images_per_second']:8.1f} images/s   step {seconds['training']:.3f} s, "
        f"{figures['step_to_convolutions']:.2f} times its convolutions' {seconds['convolutions']:.3f} s{precision}",
        f"  inference     {figures['inference_images_per_second']:8.1f} images/s   "
        f"{100 * figures['inference_to_convolutions']:.0f} % of its convolutions' speed{precision}",
        f"  peak memory   {figures['peak_memory'] / 1e9:8.2f} GB in training",
    ]


def compare_forms(measured, args):
    """Figures and lines of what was measured, {form: ...}, of one form or of both."""
    figures = {form: form_figures(measured[form], args.batch_size) for form in measured}
    lines = [line for form in figures for line in form_lines(form, figures[form])]
    if len(figures) > 1:
        fast, other = figures
        times = {
            name: figures[fast][f"{name}_images_per_second"] / figures[other][f"{name}_images_per_second"]
            for name in ("training", "inference")
        }
        figures[f"{fast}_to_{other}"] = times
        lines.append(f"{fast} to {other}   " + "   ".join(f"{name} {value:.2f} times" for name, value in times.items()))
    return figures, lines


def loader_figures(measured):
    """Figures and lines of what `scripts.measurements.measure_loader` returns."""
    seconds = measured["seconds"]
    figures = {
        "loader_images_per_second": measured["images"] / median(seconds["loader"]),
        "cost_per_cent": 100 * (ratio(seconds, "training beside", "training") - 1),
        **measured,
    }
    lines = [
        f"loader alone   {figures['loader_images_per_second']:.0f} images/s",
        f"training with the loader beside it takes {figures['cost_per_cent']:+.1f} % of the time without",
    ]
    return figures, lines


def operator_lines(operators):
    """A table of what `scripts.measurements.measure_operators` returns, the longest first."""
    total = sum(figures["seconds"] for figures in operators.values())
    lines = [f"{'operator':36} {'calls':>6} {'ms':>9} {'share':>7}   in a training step"]
    for name, figures in sorted(operators.items(), key=lambda item: -item[1]["seconds"]):
        share = figures["seconds"] / total
        lines.append(f"{name:36} {figures['calls']:6.0f} {1000 * figures['seconds']:9.2f} {share:7.1%}")
    return lines


def main():
    args = parse_arguments()
    other = "plain" if args.plain else "saving" if args.memory_saving else "bfloat16" if args.bfloat16 else None
    if other:
        figures, lines = compare_forms(measure_both(other, args), args)
    else:
        if args.profile:
            os.environ["MXNET_EXEC_BULK_EXEC_TRAIN"] = "0"
        if args.form != "plain":
            prepare_mxnet(use_gpus=False, bfloat16=args.form == "bfloat16")
        from scripts.measurements import measure_form, measure_loader, measure_operators

        if args.loader:
            figures, lines = loader_figures(measure_loader(args))
        elif args.profile:
            figures = measure_operators(args)
            lines = operator_lines(figures)
        else:
            figures, lines = compare_forms({args.form: measure_form(args)}, args)
    if args.json:
        print(json.dumps(figures))
    else:
        print(f"Attention-{args.num_layers}, {args.net}, {args.input_size}x{args.input_size}, batch {args.batch_size}")
        print(*lines, sep="\n")


if __name__ == "__main__":
    run_command(main)
