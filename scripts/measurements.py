"""What `scripts.benchmark` measures, on a CPU. Imports MXNet, which takes its thread count from the environment."""

import ast
import itertools
import json
import os
import resource
import tempfile
import time
from collections import namedtuple
from pathlib import Path

import mxnet as mx
import numpy as np
from mxnet import autograd, profiler
from mxnet.gluon import nn

from base.errors import UserError
from base.flags import choose
from data.dataset import Dataset
from data.mixup import TargetTransform
from data.records import write_records
from model import attention_net_spec, get_attention_cifar, get_attention_net
from model.plain import make_plain
from model.summary import products
from training.commands import make_loader
from training.distributed.process_group import SingleProcess
from training.flags import training_parser
from training.learner import INITIALIZER, Learner, initialize, train_step
from training.loop import train_epoch
from training.optimizers import optimizer_options
from training.recomputation import Recomputation
from training.run.progress import TrainingProgress
from training.run.progress_bar import ProgressBar

__all__ = ["chains", "in_turns", "input_shape", "make_net", "measure_form", "measure_loader", "measure_operators"]

FAMILIES = {"cifar": (get_attention_cifar, 10), "imagenet": (get_attention_net, 1000)}  # with the number of classes
ON_ONE = SingleProcess([mx.cpu()])
WARM_UP = 1  # turns that do not count: memory is allocated and oneDNN's kernels are generated in them
ALONE_STEPS = 100  # batches of an epoch of the loader alone
BESIDE_STEPS = 4  # and of one beside the training

Layer = namedtuple("Layer", ["attributes", "read", "written"])
Layer.__doc__ = "A convolution: its attributes in the network's graph, and the shapes of the maps it reads and writes."


def measure_form(args):
    """The training step, inference and the convolutions of the form ``args`` name.

    Returns {"seconds": {what was measured: list of seconds, one a turn}, "peak_memory": of the training, bytes,
    "omp_num_threads": that environment variable or None}.
    """
    training = training_step(args)
    in_turns({"training": training}, rounds=1)
    peak_memory = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # before anything else takes memory
    works = {
        "training": training,
        "inference": inference(args),
        "convolutions": convolutions(args, training=True),
        "convolutions forward": convolutions(args, training=False),
    }
    return {
        "seconds": in_turns(works, args.rounds),
        "peak_memory": peak_memory,
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
    }


def measure_loader(args):
    """The loader alone, and a training with it beside a training that is fed one batch over and over.

    Returns {"images": of an epoch of the loader alone, "seconds": as `measure_form` does}.
    """
    with tempfile.TemporaryDirectory() as folder:
        dataset = cifar_like(Path(folder), ALONE_STEPS * args.batch_size, args.input_size)
        alone = training_images(dataset, args)
        beside = training_images(dataset, args, limit=BESIDE_STEPS * args.batch_size)
        works = {
            "loader": every_batch(alone),
            "training beside": training_epoch(args, beside),
            "training": training_epoch(args, SameBatch(beside.steps, next(training_images(dataset, args).epoch(0)))),
        }
        return {"images": alone.steps * alone.batch_size, "seconds": in_turns(works, args.rounds)}


def measure_operators(args):
    """{operator: {"calls": in a training step, "seconds": in a training step}}.

    MXNET_EXEC_BULK_EXEC_TRAIN must have been 0 when MXNet was imported: operators that run in bulk are not told apart.
    """
    training = training_step(args)
    in_turns({"training": training}, rounds=1)
    with tempfile.TemporaryDirectory() as folder:  # for a trace of all calls; not os.devnull, which root would replace
        trace = os.path.join(folder, "trace.json")
        profiler.set_config(profile_symbolic=True, profile_imperative=True, aggregate_stats=True, filename=trace)
        profiler.set_state("run")
        for _ in range(args.rounds):
            training()
            mx.nd.waitall()
        profiler.set_state("stop")
        operators = json.loads(profiler.dumps(format="json"))["Time"]["operator"]
        profiler.dump()
    return {
        name: {"calls": times["Count"] / args.rounds, "seconds": times["Total"] / 1000 / args.rounds}
        for name, times in operators.items()
    }


def in_turns(works, rounds):
    """Seconds of each of ``works``, {name: function}, run one after the other: {name: list of ``rounds`` numbers}."""
    seconds = {name: [] for name in works}
    for turn in range(WARM_UP + rounds):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            mx.nd.waitall()
            if turn >= WARM_UP:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def make_net(args):
    """The uninitialized network of the flags and its number of classes; UserError for an unknown depth."""
    choose("--num-layers", args.num_layers, attention_net_spec)
    get_net, classes = FAMILIES[args.net]
    return get_net(classes, args.num_layers), classes


def ready_net(args, inference=False):
    """The network in the form of the flags, initialized and hybridized, and its number of classes."""
    net, classes = make_net(args)
    if args.form == "plain":
        make_plain(net).initialize(INITIALIZER)
        net.hybridize()
    else:
        dtype = "bfloat16" if args.form == "bfloat16" else "float32"
        initialize(net, [mx.cpu()], INITIALIZER, dtype, memory_saving=args.form == "saving", inference=inference)
    return net, classes


def ready_training(args):
    """The network of the flags or, in the saving form, its `Recomputation`, its trainer, and its number of classes."""
    net, classes = ready_net(args)
    trainer = ON_ONE.trainer(net.collect_params(), *optimizer_options(default_flags()))
    return Recomputation(net) if args.form == "saving" else net, trainer, classes


def input_shape(args):
    return args.batch_size, 3, args.input_size, args.input_size


def default_flags():
    """The training scripts' flags at their defaults."""
    return training_parser("", datasets=["cifar10"]).parse_args(["--seed", "0"])


def training_step(args):
    """A function that takes one training step."""
    net, trainer, classes = ready_training(args)
    images = mx.nd.random.normal(shape=input_shape(args))
    targets = (mx.nd.arange(args.batch_size) % classes).one_hot(classes)
    return lambda: train_step(net, trainer, [(images, targets)], ON_ONE)


def inference(args):
    """A function that classifies one batch, with a network of its own, as validation does."""
    net, _ = ready_net(args, inference=True)
    images = mx.nd.random.normal(shape=input_shape(args))
    return lambda: net(images)


def convolutions(args, training):
    """A function that runs the network's convolutions and nothing else; in training forward and backward."""
    runs = []
    for chain in chains(make_net(args)[0], input_shape(args)):
        block = as_block(chain)
        block.initialize(mx.init.MSRAPrelu(factor_type="in", slope=1))  # keeps the variance where no ReLU follows
        block.hybridize(static_alloc=True, static_shape=True)
        maps = mx.nd.random.normal(shape=chain[0].read)
        if runs:  # the first chain reads the images, of which training needs no gradient
            maps.attach_grad()
        runs.append((block, maps, mx.nd.random.normal(shape=chain[-1].written)))

    def run():
        for block, maps, gradient in runs:
            if training:
                with autograd.record():
                    output = block(maps)
                output.backward(gradient)
            else:
                block(maps)

    return run


def chains(net, shape):
    """The convolutions of a network that has not been fused, in chains: lists of `Layer`s that fit on each other.

    A convolution by itself would read and write MXNet's plain maps. In the network, and in a chain, most read oneDNN's
    blocks and write them.
    """
    rest = [
        Layer(node["attrs"], read, written)
        for node, read, written in products(net, shape)
        if node["op"] == "Convolution"
    ]
    found = []
    while rest:
        chain = [rest.pop(0)]
        while followers := [layer for layer in rest if layer.read == chain[-1].written]:
            # first those that keep the shape, since others can still follow them
            chain.append(min(followers, key=lambda layer: layer.read != layer.written))
            rest.remove(chain[-1])
        found.append(chain)
    return found


def as_block(chain):
    """The layers of a chain as an uninitialized HybridBlock."""
    block = nn.HybridSequential()
    for attributes, read, written in chain:
        kernel, stride, padding = (ast.literal_eval(attributes[name]) for name in ("kernel", "stride", "pad"))
        groups = int(attributes["num_group"])
        block.add(nn.Conv2D(written[1], kernel, stride, padding, groups=groups, use_bias=False, in_channels=read[1]))
    return block


def cifar_like(folder, count, size):
    """A `Dataset` of made images: patches of colour with so much noise that a PNG is as long as one of CIFAR-10."""
    draw = np.random.default_rng(0)

    def image():
        colours = draw.integers(0, 256, (4, 4, 3)).repeat(size // 4, axis=0).repeat(size // 4, axis=1)
        return (0.9 * colours + draw.integers(0, 26, (size, size, 3))).astype(np.uint8)

    path = folder / "train.rec"
    write_records(path, ((image(), position % 10) for position in range(count)))
    return Dataset("made", 10, {"train": path}, size, (125.0,) * 3, (63.0,) * 3, mirror=True)


def training_images(dataset, args, limit=None):
    """The training images' loader, as the training scripts make it."""
    flags = default_flags()
    flags.batch_size, flags.limit = args.batch_size, limit
    return make_loader(dataset, "train", ON_ONE, flags)


class SameBatch:
    """What the training loop needs of a loader, without its work: ``batches`` again in each of ``steps``."""

    def __init__(self, steps, batches):
        self.steps, self.batch_size = steps, sum(batch.count for batch in batches)
        self._batches = batches

    def epoch(self, epoch, first_step=0):
        return itertools.repeat(self._batches, self.steps - first_step)


class Unrecorded:
    """What the training loop needs of a `training.run.run.Run`, without a file."""

    def __init__(self, progress):
        self.progress = progress

    def progress_bar(self, steps, done=0):
        return ProgressBar(steps, "training", interval=steps + 1, done=done)

    def on_step_end(self):
        pass

    def on_not_finite(self, error):
        raise UserError(str(error))


def every_batch(loader):
    """A function that takes an epoch's batches from a loader, each time the next epoch's."""
    epochs = itertools.count()

    def run():
        for _ in loader.epoch(next(epochs)):
            pass

    return run


def training_epoch(args, loader):
    """A function that trains for an epoch, each time the next one."""
    _, classes = make_net(args)
    learner = Learner(lambda: make_net(args)[0], ON_ONE, optimizer_options(default_flags()), seed=0)
    transform, epochs = TargetTransform(classes), itertools.count()

    def run():
        unrecorded = Unrecorded(TrainingProgress(loader.steps, next(epochs)))
        train_epoch(learner, unrecorded, loader, transform, lambda step: 0.01)

    return run
