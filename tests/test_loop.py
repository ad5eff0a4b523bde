"""The training step and the loop's parts, on one device and on several."""

import csv
from types import SimpleNamespace

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd
from mxnet.gluon import nn

from base.devices import explaining_memory
from base.errors import UserError
from data.loader import LoaderOptions, ShardedLoader
from training.commands import train
from training.distributed.process_group import SingleProcess
from training.flags import parse_arguments, training_parser
from training.learner import NotFinite, copy_parameters, initialize, train_step, validate
from training.network_file import describe
from training.optimizers import optimizer_options
from training.run.files import new_run
from training.run.logger import RunLogger
from training.state import TrainingState

ON_ONE = SingleProcess([mx.cpu()])


def small_net():
    """A residual unit and a classifier, uninitialized."""
    from model.units import PreActivationBottleneck

    net = nn.HybridSequential()
    net.add(PreActivationBottleneck(8, 3), nn.GlobalAvgPool2D(), nn.Dense(10, in_units=8))
    return net


def freeze_normalization(net):
    for block in net.collect_params(".*(gamma|beta)").values():
        block.grad_req = "null"

    def use_running_statistics(block):
        if isinstance(block, nn.BatchNorm):
            block._kwargs["use_global_stats"] = True

    net.apply(use_running_statistics)


def examples(count):
    draw = np.random.default_rng(0)
    images = mx.nd.array(draw.normal(size=(count, 3, 8, 8)))
    return images, mx.nd.one_hot(mx.nd.array(draw.integers(0, 10, count)), 10)


def parameters_after(contexts, steps=5):
    """Parameters after training on 12 images a step, shared out to the contexts."""
    mx.random.seed(5)
    group = SingleProcess(contexts)
    net = initialize(small_net(), contexts, mx.init.Xavier())
    freeze_normalization(net)
    trainer = group.trainer(net.collect_params(), "nag", {"learning_rate": 0.1, "momentum": 0.9})
    images, targets = examples(12)
    share = 12 // len(contexts)
    for _ in range(steps):
        shares = [
            (
                images[i * share : (i + 1) * share].as_in_context(c),
                targets[i * share : (i + 1) * share].as_in_context(c),
            )
            for i, c in enumerate(contexts)
        ]
        train_step(net, trainer, shares, group)
    return [[p.data(c).asnumpy() for p in net.collect_params().values()] for c in contexts]


@pytest.mark.parametrize("num_devices", [2, 3])
def test_several_devices_take_the_steps_of_one(num_devices):
    (alone,) = parameters_after([mx.cpu(0)])
    replicas = parameters_after([mx.cpu(device) for device in range(num_devices)])
    for replica in replicas:
        for value, expected, first in zip(replica, alone, replicas[0]):
            np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)
            np.testing.assert_array_equal(value, first)


def test_a_step_follows_the_gradient_of_the_mean_loss():
    net = nn.Dense(2, in_units=1, use_bias=False)
    net.initialize(mx.init.Zero())
    trainer = ON_ONE.trainer(net.collect_params(), "sgd", {"learning_rate": 1.0})
    images, targets = mx.nd.array([[1.0], [3.0]]), mx.nd.array([[1, 0], [1, 0]])
    _, (losses,) = train_step(net, trainer, [(images, targets)], ON_ONE)
    np.testing.assert_allclose(losses.asnumpy(), np.log(2) * np.ones(2), rtol=1e-5)
    # the gradient by the logits is softmax - target = (-1/2, 1/2), and the mean image is 2
    np.testing.assert_allclose(net.weight.data().asnumpy(), [[1.0], [-1.0]], rtol=1e-5)


@pytest.mark.parametrize("contexts", [[mx.cpu()], [mx.cpu(0), mx.cpu(1)]])
def test_what_is_handed_over_is_what_is_validated_each_time(contexts):
    net = initialize(small_net(), contexts, mx.init.Xavier())
    evaluated = initialize(small_net(), contexts, mx.init.Zero(), inference=True)
    images, _ = examples(4)
    for scale in (1.0, 2.0, 3.0):
        for parameter in net.collect_params().values():
            parameter.set_data(parameter.data(contexts[0]) * scale + 0.01 * scale)  # statistics are not negative
        copy_parameters(net, evaluated)
        for context in contexts:
            share = images.as_in_context(context)
            found, expected = evaluated(share).asnumpy(), net(share).asnumpy()
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * abs(expected).max())


def test_a_step_without_a_finite_loss_or_gradient_changes_nothing():
    group = SingleProcess([mx.cpu(0), mx.cpu(1)])
    net = initialize(small_net(), group.devices, mx.init.Xavier())
    options = {"momentum": 0.9, "wd": 1e-4}
    trainer = group.trainer(net.collect_params(), "nag", options)
    state = TrainingState(net, trainer, group)
    images, targets = examples(4)
    good = [(images.as_in_context(context), targets.as_in_context(context)) for context in group.devices]
    train_step(net, trainer, good, group)
    before = state.gather(state.statistics())
    of_nan = [good[0], (good[1][0] * np.nan, good[1][1])]  # ReLU makes zeros of them: the loss is finite
    with pytest.raises(NotFinite, match="gradient's norm is nan"):
        train_step(net, trainer, of_nan, group)
    with pytest.raises(NotFinite, match="the loss is nan"):
        train_step(net, trainer, [good[0], (good[1][0], good[1][1] * np.nan)], group)
    after = state.gather(state.statistics())
    assert all((after[name] == before[name]).all() for name in before)
    train_step(net, trainer, good, group)
    assert any((state.gather(state.statistics())[name] != before[name]).any() for name in before)


@pytest.mark.parametrize(
    "message",
    [
        "[10:00:00] ../src/storage/./pooled_storage_manager.h:187: cudaMalloc retry failed: out of memory",
        "CUDA runtime API error cudaErrorMemoryAllocation (2):\nout of memory",
        "Failed to allocate CPU Memory",
    ],
)
def test_used_up_memory_is_one_line_with_what_helps(message):
    expected = r"^out of memory: a smaller --batch-size or --memory-saving"
    with pytest.raises(UserError, match=expected) as raised, explaining_memory():
        raise mx.base.MXNetError(message)
    assert "\n" not in str(raised.value)
    with pytest.raises(mx.base.MXNetError, match="shape"), explaining_memory():
        raise mx.base.MXNetError("Shape inconsistent: shape")


def test_histograms_leave_out_what_has_none(tmp_path):
    net = nn.Dense(1, in_units=2)
    net.initialize(mx.init.Constant(np.inf))
    logger = RunLogger(new_run(tmp_path, "run", "stem"), 1)
    logger.histograms(net, 1)
    (events,) = (tmp_path / "board" / "run").iterdir()
    assert b"parameters/bias" in events.read_bytes() and b"parameters/weight" not in events.read_bytes()


@pytest.mark.parametrize("optimizer", ["nag", "sgd"])
def test_half_precision_updates_a_float32_copy(optimizer):
    net = nn.Dense(1, in_units=1, use_bias=False)
    args = SimpleNamespace(momentum=0.5, wd=0.0, optimizer=optimizer, float16=True)
    initialize(net, [mx.cpu()], mx.init.One(), "float16")
    trainer = ON_ONE.trainer(net.collect_params(), *optimizer_options(args))
    trainer.set_learning_rate(1.0)
    for _ in range(10):
        with autograd.record():
            loss = net.weight.data() * 1e-4  # a step that is lost next to 1 in float16
        loss.backward()
        trainer.step(1)
    assert net.weight.data().dtype == np.float16
    assert net.weight.data().asscalar() == pytest.approx(1 - 1.8e-3, abs=3e-4)


def test_replicas_share_the_mean_of_their_statistics():
    contexts = [mx.cpu(0), mx.cpu(1)]
    net = nn.BatchNorm(in_channels=2)
    net.initialize(ctx=contexts)
    group = SingleProcess(contexts)
    state = TrainingState(net, group.trainer(net.collect_params(), "sgd", {}), group)
    for context, value in zip(contexts, (1.0, 3.0)):
        net.running_mean.data(context)[:] = value
    state.average_statistics()
    assert [net.running_mean.data(context).asnumpy().tolist() for context in contexts] == [[2.0, 2.0]] * 2


class FirstChannelMean(nn.HybridBlock):
    """Logits that single out the class an image's first pixel names."""

    def hybrid_forward(self, F, x):
        named = F.slice(x, begin=(None, 0, 0, 0), end=(None, 1, 1, 1)).reshape((-1,))
        return F.one_hot(named - 5, depth=31)


@pytest.mark.parametrize("num_devices, batch_size", [(1, 31), (1, 4), (2, 4), (3, 5)])
def test_validation_counts_every_image_once(numbered, num_devices, batch_size):
    contexts = [mx.cpu(device) for device in range(num_devices)]
    loader = ShardedLoader(numbered(31), "test", LoaderOptions(batch_size, seed=0), contexts, training=False)
    means = validate(FirstChannelMean(), loader, "float32", ON_ONE)
    assert means["accuracy"] == 1
    assert means["loss"] == pytest.approx(np.log(np.e + 30) - 1, rel=1e-5)


def test_filling_images_do_not_count(numbered):
    class Wrong(nn.HybridBlock):
        def hybrid_forward(self, F, x):
            return F.one_hot(F.zeros_like(x).sum(axis=(1, 2, 3)), depth=31)  # always class 0, which fills batches

    loader = ShardedLoader(numbered(31), "test", LoaderOptions(30, seed=0), [mx.cpu()], training=False)
    assert validate(Wrong(), loader, "float32", ON_ONE)["accuracy"] == pytest.approx(1 / 31)


def test_a_whole_training_runs_on_several_devices(tmp_path, digits):
    contexts = [mx.cpu(0), mx.cpu(1)]
    flags = ["--log-dir", str(tmp_path), "--run-name", "two", "--epochs", "2", "--lr", "0.1", "--mix-up", "1"]
    flags += ["--seed", "1", "--batch-size", "8", "--limit", "37", "--mix-up-off-epochs", "0"]
    args = parse_arguments(training_parser("test", datasets=["digits"]), flags)
    nets = []

    def make_net():
        nets.append(small_net())
        return nets[-1]

    train(make_net, describe(digits, "cifar", 56, "bottleneck"), digits, SingleProcess(contexts), args)
    with open(tmp_path / "text" / "two.csv") as file:
        rows = list(csv.DictReader(file))
    saved = mx.nd.load(str(tmp_path / "params" / "two" / "last.params"))
    for net in nets:  # the one that trained and the one that was validated, on both devices
        for name, parameter in net._collect_params_with_prefix().items():
            for context in contexts:
                np.testing.assert_array_equal(parameter.data(context).asnumpy(), saved[name].asnumpy())
    validation = ShardedLoader(digits, "test", LoaderOptions(8, seed=1, limit=37), contexts, training=False)
    means = validate(nets[0], validation, "float32", ON_ONE)
    assert float(rows[-1]["val_loss"]) == pytest.approx(means["loss"], rel=1e-5)
    assert float(rows[-1]["val_accuracy"]) == pytest.approx(means["accuracy"], abs=1e-5)


@pytest.mark.parametrize("name, options, arrays", [("sgd", {}, 0), ("nag", {"momentum": 0.9}, 1), ("adam", {}, 2)])
def test_any_nesting_of_an_optimizers_arrays_is_saved(name, options, arrays):
    net = nn.Dense(1, in_units=1, use_bias=False)
    initialize(net, [mx.cpu()], mx.init.One(), "float16")
    trainer = ON_ONE.trainer(net.collect_params(), name, {**options, "multi_precision": True})
    state = TrainingState(net, trainer, ON_ONE)
    names = [name for name in state.gather({}) if name.startswith("optimizer/")]
    assert len(names) == arrays + 1  # and the float32 copy of the weight
