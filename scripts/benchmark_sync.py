#!/usr/bin/env python3
"""Time the training steps of workers in step, and what they exchange. Run by a launcher, or alone."""

import json
import os
import sys
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # where the script is run by its path

from base.errors import UserError, run_command
from base.flags import HelpFormatter, OneLineParser, non_negative_int, positive_int
from base.runtime import prepare_mxnet
from scripts.benchmark import SIZES
from training.flags import training_parser

WARM_UP = 2  # steps that do not count: memory is allocated and the engine learns the names of the arrays


def parse_arguments():
    """This script's flags, and the training scripts' others at their defaults."""
    parser = OneLineParser(description=__doc__, formatter_class=HelpFormatter, allow_abbrev=False)
    # not --net, which horovodrun would take for its own --network-interface
    nets = [*SIZES, "small"]
    parser.add_argument(
        "--family", dest="net", choices=nets, default="cifar", help="of networks; small: three convolutions"
    )
    parser.add_argument("--num-layers", type=positive_int, default=56, help="depth: 56, 92, 128, 164, 236 or 452")
    parser.add_argument("--num-gpus", type=non_negative_int, default=0, help="GPUs of each worker; 0 is the CPU")
    parser.add_argument("--batch-size", "-b", type=positive_int, default=16, help="images a step, for each device")
    parser.add_argument("--steps", type=positive_int, default=5, help="measurements of each thing, taken in turns")
    parser.add_argument("--gradient-compression", choices=["none", "fp16"], default="none", help="how gradients travel")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    args = parser.parse_args()
    args.input_size = SIZES.get(args.net, SIZES["cifar"])[0]
    training_parser("", datasets=["cifar10"]).parse_args(["--seed", "0"], args)  # fills in what is missing
    args.settings = {}
    return args


def small_net():
    """A network of few arrays, as ``scripts.measurements.make_net`` gives others."""
    from mxnet.gluon import nn

    classes, net = 10, nn.HybridSequential()
    net.add(
        nn.Conv2D(256, 5, 2, 2, activation="relu", use_bias=False, in_channels=3),
        nn.Conv2D(256, 3, 2, 1, activation="relu", use_bias=False, in_channels=256),
        nn.Conv2D(256, 3, 1, 1, activation="relu", use_bias=False, in_channels=256),
        nn.GlobalAvgPool2D(),
        nn.Dense(classes, in_units=256),
    )
    return net, classes


def measure(sync, args):
    """Time steps of random images on all workers.

    Returns {"workers", "images": of a step of all workers, "arrays" and "gradient_bytes": of one replica's gradients,
    "seconds": {what: list}}. A "step" is as the training takes it. "computation" and "communication" are the parts of
    one in which nothing is sent before the last worker has all its gradients, so that neither contains the other.
    "one array" is the sum of an array of as many bytes as the gradients, where there are other workers.
    """
    import mxnet as mx
    import numpy as np

    from scripts.measurements import INITIALIZER, input_shape, make_net
    from training.loop import make_trainer, place, train_step

    net, classes = small_net() if args.net == "small" else make_net(args)
    place(net, sync.devices, "float32", INITIALIZER)
    trainer = make_trainer(net, sync, args)
    sync.broadcast(net)
    trainer.set_learning_rate(0.01)
    targets = (mx.nd.arange(args.batch_size) % classes).one_hot(classes)
    gradients = [parameter.grad() for parameter in trainer._params if parameter.grad_req != "null"]
    together = mx.nd.zeros(sum(gradient.size for gradient in gradients), sync.devices[0])
    allreduce_grads, add = trainer.allreduce_grads, sync.sum
    seconds = {"step": [], "computation": [], "communication": []}

    def timed(spent, function, *arguments):
        started = time.perf_counter()
        result = function(*arguments)
        spent.append(time.perf_counter() - started)
        return result

    def step():
        """One as a training has it, and everything that follows from it."""
        images = [mx.nd.random.normal(shape=input_shape(args), ctx=device) for device in sync.devices]
        train_step(net, trainer, [(i, targets.as_in_context(i.context)) for i in images], sync)
        sync.sum("wishes", np.zeros(3))  # as `training.run.checkpointer.Keeper` does it after every step
        mx.nd.waitall()

    def step_in_parts():
        spent = []

        def allreduce_apart():
            mx.nd.waitall()
            sync.barrier()
            spent.clear()
            timed(spent, allreduce_grads)
            timed(spent, mx.nd.waitall)  # several devices of one process do not wait by themselves

        def sum_apart(*arguments):
            mx.nd.waitall()
            return timed(spent, add, *arguments)

        trainer.allreduce_grads, sync.sum = allreduce_apart, sum_apart
        started = time.perf_counter()
        try:
            step()
        finally:
            trainer.allreduce_grads, sync.sum = allreduce_grads, add
        seconds["communication"].append(sum(spent))
        seconds["computation"].append(time.perf_counter() - started - sum(spent))

    def one_array():
        sync.start_sum(together, "together")
        sync.wait(together)

    for _ in range(WARM_UP + args.steps):
        sync.barrier()
        timed(seconds["step"], step)
        step_in_parts()
        if sync.size > 1:
            sync.barrier()
            timed(seconds.setdefault("one array", []), one_array)
    return {
        "workers": sync.size,
        "images": sync.size * len(sync.devices) * args.batch_size,
        "arrays": len(gradients),
        "gradient_bytes": 4 * together.size,
        "seconds": {name: values[WARM_UP:] for name, values in seconds.items()},
    }


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
        f"  gradients      {figures['gradient_bytes']:,} bytes in {figures['arrays']} arrays, "
        f"exchanged as {figures['exchanged_bytes']:,}",
    ]
    if "one array" in medians:
        lines.append(
            f"  one array      of {figures['gradient_bytes']:,} bytes is summed in {medians['one array']:.3f} s"
        )
    return lines


def main():
    args = parse_arguments()
    prepare_mxnet()
    from training.distributed import process_group

    with process_group.start(args) as workers:
        if workers.size == 1 and args.gradient_compression != "none":
            raise UserError(f"--gradient-compression {args.gradient_compression}: a worker alone sends nothing")
        figures = figures_of(measure(workers, args), args)
        if workers.rank == 0:
            print(json.dumps(figures) if args.json else "\n".join(lines_of(figures, args)), flush=True)


if __name__ == "__main__":
    run_command(main)
