"""Training that computes maps again instead of keeping them takes the same steps, to the bit, in less memory."""

import os
import re
import subprocess
import sys
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd
from mxnet.gluon import nn

from data.mixup import mixup
from model import AttentionNet, AttentionNetCifar, get_resnet_cifar, units
from tests.conftest import ROOT
from tests.test_training import train_on_digits
from training.distributed.process_group import SingleProcess
from training.learner import NotFinite, initialize, train_step
from training.recomputation import Recomputation
from training.state import TrainingState


def training(family, unit, memory_saving, devices):
    """A shallow network of the family or its `Recomputation`, the trainer, both's state, and the single worker."""
    group = SingleProcess([mx.cpu(device) for device in range(devices)])
    net = family(10, (1, 1, 1), (1, 1, 1), unit=units[unit])
    mx.random.seed(1)
    initialize(net, group.devices, mx.init.MSRAPrelu(), memory_saving=memory_saving)
    trainer = group.trainer(net.collect_params(), "nag", {"momentum": 0.9, "wd": 1e-4})
    return Recomputation(net) if memory_saving else net, trainer, TrainingState(net, trainer, group), group


def resnet_11(classes, *_, unit):
    return get_resnet_cifar(classes, 11)


def mixed_shares(size, devices, seed):
    """Four mixtures of images with their targets for each device."""
    draw = np.random.default_rng(seed)
    shares = []
    for device in range(devices):
        images = mx.nd.array(draw.normal(size=(4, 3, size, size)), ctx=mx.cpu(device))
        targets = mx.nd.array(draw.integers(0, 10, 4), ctx=mx.cpu(device)).one_hot(10)
        shares.append(mixup(images, targets, 0.7))
    return shares


def three_steps(family, unit, size, memory_saving, devices):
    """The logits and losses of three steps, and the gradients, statistics and all else at the end, as numpy arrays."""
    net, trainer, state, group = training(family, unit, memory_saving, devices)
    results = []
    for seed in range(3):
        outputs, losses = train_step(net, trainer, mixed_shares(size, devices, seed), group)
        results += [array.asnumpy() for array in (*outputs, *losses)]
    for parameter in trainer._params:
        if parameter.grad_req != "null":
            results += [gradient.asnumpy() for gradient in parameter.list_grad()]
    return [*results, *state.gather(state.statistics()).values()]


@pytest.mark.parametrize(
    "family, unit, size, devices",
    [
        (AttentionNetCifar, "bottleneck", 32, 1),
        (AttentionNetCifar, "bottleneck", 16, 2),
        (AttentionNetCifar, "resnext", 16, 1),
        (AttentionNetCifar, "inception", 16, 1),
        (AttentionNetCifar, "se", 16, 1),
        (AttentionNet, "bottleneck", 96, 1),
        (resnet_11, "bottleneck", 16, 1),  # whose stages have one unit each
    ],
)
def test_the_numbers_are_the_same_to_the_bit(family, unit, size, devices):
    kept = three_steps(family, unit, size, False, devices)
    again = three_steps(family, unit, size, True, devices)
    assert len(kept) == len(again) > 40
    for one, other in zip(kept, again):
        np.testing.assert_array_equal(one, other)


def test_a_step_that_is_left_out_changes_nothing_of_the_next_one():
    def after(*steps):
        net, trainer, state, group = training(AttentionNetCifar, "bottleneck", True, 2)
        for images_are_bad, targets_are_bad in steps:
            shares = mixed_shares(16, 2, seed=5)
            shares[1] = tuple(
                array * np.nan if bad else array for array, bad in zip(shares[1], (images_are_bad, targets_are_bad))
            )
            try:
                train_step(net, trainer, shares, group)
            except NotFinite:
                assert images_are_bad or targets_are_bad
        return state.gather(state.statistics())

    good = (False, False)
    expected, values = after(good, good), after(good, (True, False), (False, True), good)
    for name in expected:
        np.testing.assert_array_equal(values[name], expected[name])


class ForwardStatistics(nn.Block):
    """Doubles its input; keeps its statistics as batch normalization does on a GPU, in the forward pass."""

    def __init__(self):
        super().__init__()
        with self.name_scope():
            self.running_mean = self.params.get("running_mean", shape=(1,), init="zeros", differentiable=False)

    def forward(self, x):
        if autograd.is_training():
            mean = self.running_mean.data(x.context)
            mean[:] = 0.5 * mean + 0.5 * x.mean()
        return 2 * x


def test_statistics_that_the_forward_pass_keeps_are_updated_once():
    class Pieces(nn.Sequential):
        def pieces(self):
            return list(self)

    net = Pieces()
    net.add(nn.Dense(3, in_units=3), ForwardStatistics(), ForwardStatistics(), nn.Dense(10, in_units=3))
    net.initialize(mx.init.One())
    group = SingleProcess([mx.cpu()])
    trainer = group.trainer(net.collect_params(), "sgd", {})
    train_step(Recomputation(net), trainer, [(mx.nd.ones((2, 3)), mx.nd.one_hot(mx.nd.arange(2), 10))], group)
    assert [block.running_mean.data().asscalar() for block in (net[1], net[2])] == [1.5, 3.0]


def test_a_run_may_go_on_with_the_flag_or_without(tmp_path, digits):
    def train(*flags):
        process = train_on_digits(tmp_path, digits, *flags)
        assert process.returncode == 0, process.stderr

    def parameters(name):
        loaded = mx.nd.load(str(tmp_path / "params" / name / "last.params"))
        return {key: value.asnumpy().tobytes() for key, value in loaded.items()}

    flags = ("--mix-up", 1, "--mix-up-off-epochs", 0)
    train("--run-name", "kept", "--epochs", 3, *flags)
    train("--run-name", "run", "--epochs", 1, *flags)
    train("--resume", "run", "--epochs", 2, "--memory-saving")
    train("--resume", "run", "--epochs", 3, "--no-memory-saving")
    assert parameters("run") == parameters("kept")


def peak_of_two_steps(form):
    """Bytes by which two steps, in a process of their own, raise its peak: of several modules at the largest maps."""
    code = f"""
import mxnet as mx
from model import AttentionNetCifar
from tests.test_recomputation import peak_memory
from training.distributed.process_group import SingleProcess
from training.learner import initialize, train_step
from training.recomputation import Recomputation

saving, group = {form == "saving"}, SingleProcess([mx.cpu()])
net = initialize(AttentionNetCifar(10, (1, 1, 1), (4, 1, 1)), group.devices, mx.init.MSRAPrelu(), memory_saving=saving)
trainer = group.trainer(net.collect_params(), "nag", {{}})
forward = Recomputation(net) if saving else net
share = mx.nd.random.normal(shape=(8, 3, 32, 32)), mx.nd.one_hot(mx.nd.arange(8), 10)
before = peak_memory()
for _ in range(2):
    train_step(forward, trainer, [share], group)
mx.nd.waitall()
print(peak_memory() - before)
"""
    # one operator after the other on one thread: what is in memory at once is not left to chance
    environ = {**os.environ, "MXNET_ENGINE_TYPE": "NaiveEngine", "OMP_NUM_THREADS": "1"}
    child = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environ, check=True, capture_output=True)
    return int(child.stdout)


def peak_memory():
    """The largest size that this process has had in memory, bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])


def test_it_takes_less_memory():
    assert peak_of_two_steps("saving") < 0.75 * peak_of_two_steps("fast")
