"""The training step and the loop's parts, on one device and on several."""

import contextlib
import csv
from types import SimpleNamespace

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd
from mxnet.gluon import nn

import training.learner
import training.weight_average
from base.devices import contexts as devices_of
from base.devices import explaining_memory
from base.errors import UserError
from data.augmentation import Cutout, RandomErasing
from data.loader import LoaderOptions, ShardedLoader
from data.mixup import Example, TargetTransform
from model import AttentionNetCifar
from model.extension import use_running_statistics
from training.commands import check_same_images, join_group, precision, train
from training.distributed.process_group import SingleProcess
from training.flags import parse_arguments, training_parser
from training.flat_arrays import FlatTrainer
from training.learner import (
    Learner,
    LearnerOptions,
    NotFinite,
    StepOptions,
    add_gradients_up,
    copy_parameters,
    initialize,
    mirror_averaged,
    take_step,
    train_step,
    validate,
)
from training.loop import Ahead
from training.network_file import describe
from training.optimizers import optimizer_options
from training.recomputation import Recomputation
from training.run.files import new_run
from training.run.logger import RunLogger
from training.schedule import Falls, learning_rates
from training.state import TrainingState
from training.weight_average import WeightAverage

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
    use_running_statistics(net)


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
        "Critical error when building pipeline:\nCUDA allocation failed",
        "Error in MIXED operator `nvidia.dali.fn.decoders.image`: Can't allocate 129499136 bytes on device 0.",
        "nvJPEG error (5): The user-provided allocator functions, for either memory type, returned a non-zero code.",
        "Failed to find any forward convolution algorithm.  with workspace size of 1073741824 bytes",
        "Failed to allocate CPU Memory",
        "Check failed: [SetShapeType] Size of tensor you are trying to allocate is larger than 2^31 elements",
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


class InPieces(nn.HybridSequential):
    def pieces(self):
        return list(self._children.values())


def steps_in_parts(parts, contexts, wrap=lambda net: net, steps=3):
    """Parameters after steps of 12 images, in so many parts, each shared out to the contexts."""
    mx.random.seed(5)
    group = SingleProcess(contexts)
    net = InPieces()
    net.add(*small_net()._children.values())
    initialize(net, contexts, mx.init.Xavier(), memory_saving=wrap is Recomputation)
    freeze_normalization(net)
    if parts > 1:
        add_gradients_up(net)
    trainer = group.trainer(net.collect_params(), "nag", {"learning_rate": 0.1, "momentum": 0.9})
    images, targets = examples(12)
    size, forward = 12 // parts // len(contexts), wrap(net)
    shares = [
        tuple(part[first : first + size].as_in_context(contexts[number % len(contexts)]) for part in (images, targets))
        for number, first in enumerate(range(0, 12, size))
    ]
    for _ in range(steps):
        _, losses = train_step(forward, trainer, shares, group)
        assert sum(map(len, losses)) == 12
    return [p.data(contexts[-1]).asnumpy() for p in net.collect_params().values()]


@pytest.mark.parametrize("wrap", [lambda net: net, Recomputation], ids=["kept", "recomputed"])
@pytest.mark.parametrize("devices", [1, 2])
def test_batches_added_up_are_one_large_batch(devices, wrap):
    contexts = [mx.cpu(device) for device in range(devices)]
    for whole, added in zip(steps_in_parts(1, contexts), steps_in_parts(3, contexts, wrap)):
        np.testing.assert_allclose(added, whole, rtol=1e-4, atol=1e-6)


def change_of_a_step(clip_grad, scale=1.0):
    """What one step of plain descent with the rate 1 adds to the parameters, as one array."""
    mx.random.seed(5)
    net = initialize(small_net(), [mx.cpu()], mx.init.Xavier())
    trainer = ON_ONE.trainer(net.collect_params(), "sgd", {"learning_rate": 1.0})
    trained = [p for p in net.collect_params().values() if p.grad_req != "null"]
    before = [p.data().asnumpy() for p in trained]
    take_step(net, trainer, [examples(12)], ON_ONE, StepOptions(scale, clip_grad))
    return np.concatenate([(p.data().asnumpy() - value).ravel() for p, value in zip(trained, before)])


def test_a_long_gradient_is_shortened_and_a_short_one_is_not():
    whole = change_of_a_step(None)
    length = np.linalg.norm(whole)
    for scale in (1.0, 8.0):
        shortened = change_of_a_step(length / 4, scale)
        np.testing.assert_allclose(shortened, whole / 4, rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(change_of_a_step(2 * length, scale), whole, rtol=1e-4, atol=1e-7)


def test_a_learners_steps_are_shortened_as_its_options_say():
    learner = Learner(small_net, ON_ONE, ("sgd", {}), seed=1, options=LearnerOptions(clip_grad=1e-3))
    trained = [p for p in learner.net.collect_params().values() if p.grad_req != "null"]
    before = [p.data().asnumpy() for p in trained]
    images, targets = examples(12)
    learner.step([Example(images, targets, targets)], 1.0, 0, 0)
    change = np.concatenate([(p.data().asnumpy() - value).ravel() for p, value in zip(trained, before)])
    assert np.linalg.norm(change) == pytest.approx(1e-3, rel=1e-2)


def test_the_norm_is_that_of_all_gradients(monkeypatch):
    length = np.linalg.norm(change_of_a_step(None))
    monkeypatch.setattr(training.learner, "GROUP", 3)
    assert np.linalg.norm(change_of_a_step(length / 4)) == pytest.approx(length / 4, rel=1e-4)


def test_figures_of_a_step_are_those_of_each_devices_images():
    contexts, draw = [mx.cpu(0), mx.cpu(1)], np.random.default_rng(1)
    learner = Learner(small_net, SingleProcess(contexts), ("sgd", {}), seed=1)
    shares, expected = [], []
    for context in contexts:
        images, targets, smoothed = draw.normal(size=(4, 3, 8, 8)), *(draw.dirichlet(np.ones(10), 4) for _ in range(2))
        shares.append(Example(*(mx.nd.array(array, ctx=context) for array in (images, targets, smoothed))))
        with autograd.train_mode():
            logits = learner.net(shares[-1].images).asnumpy()
        log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        hits = targets[range(4), logits.argmax(axis=1)].sum()
        expected.append({"loss": -(smoothed * log_probabilities).sum(), "metric": hits})
    found = learner.step(shares, 0.1, 0, 0)
    for figures, values in zip(found, expected):
        assert figures == {name: (4, pytest.approx(value, rel=1e-4)) for name, value in values.items()}


def test_gradients_that_travel_in_half_precision_have_a_scale_too():
    group = SingleProcess([mx.cpu()])
    assert Learner(small_net, group, ("sgd", {}), seed=1).state.loss_scale is None
    group.gradient_dtype = "float16"
    assert Learner(small_net, group, ("sgd", {}), seed=1).state.loss_scale is not None


@pytest.mark.parametrize("arrays", [1, training.weight_average.GROUP], ids="in groups of {}".format)
def test_the_average_follows_the_weights_and_is_evaluated_beside_them(digits, monkeypatch, arrays):
    monkeypatch.setattr(training.weight_average, "GROUP", arrays)
    decay, contexts = 0.3, [mx.cpu(0), mx.cpu(1)]
    learner = Learner(small_net, SingleProcess(contexts), ("sgd", {}), seed=1, options=LearnerOptions(ema=decay))
    names = list(learner.net._collect_params_with_prefix())

    def weights(net):
        parameters = net._collect_params_with_prefix()
        return {name: parameters[name].data(contexts[0]).asnumpy() for name in names}

    images, targets = examples(8)
    expected = weights(learner.net)
    for step in range(5):
        share = SimpleNamespace(images=images, targets=targets, smoothed=targets)
        other = SimpleNamespace(**{name: value.as_in_context(contexts[1]) for name, value in vars(share).items()})
        learner.step([share, other], 0.5, 0, step)
        rate = 1 - min(decay, (2 + step) / (11 + step))
        expected = {name: mean + rate * (weights(learner.net)[name] - mean) for name, mean in expected.items()}
    learner.update_evaluation_nets()
    moved = 0
    for name, mean in weights(learner.average_net).items():
        np.testing.assert_allclose(mean, expected[name], rtol=1e-5, atol=1e-6)
        moved += abs(mean - weights(learner.net)[name]).max() > 1e-4
    assert moved > len(names) / 2
    loader = ShardedLoader(digits, "test", LoaderOptions(8, seed=1, limit=32), contexts, training=False)
    means = learner.evaluate(loader, lambda images: None)
    for prefix, net in (("", learner.evaluation_net), ("ema_", learner.average_net)):
        alone = validate(net, loader, "float32", ON_ONE)
        assert {f"{prefix}{name}": mean for name, mean in alone.items()}.items() <= means.items()
    assert means["ema_loss"] != means["loss"]


def test_an_average_over_the_mirror_image_does_not_see_left_from_right(numbered):
    learner = Learner(small_net, ON_ONE, ("sgd", {}), seed=1, options=LearnerOptions(tta=True))
    learner.update_evaluation_nets()
    net, (images, _) = learner.evaluation_net, examples(6)
    mirrored = images.flip(axis=3)
    averaged = mirror_averaged(net)
    assert abs(net(images) - net(mirrored)).max().asscalar() > 1e-3
    np.testing.assert_allclose(averaged(images).asnumpy(), averaged(mirrored).asnumpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(averaged(images).asnumpy(), (net(images) + net(mirrored)).asnumpy() / 2, rtol=1e-6)


def test_a_validation_takes_the_mean_over_mirror_images_where_it_is_told_to(real_images):
    from data.cifar import open_cifar10

    dataset = open_cifar10(real_images)
    loader = ShardedLoader(dataset, "test", LoaderOptions(20, seed=0, limit=40), [mx.cpu()], training=False)
    losses = []
    for tta in (False, True):
        learner = Learner(small_net, ON_ONE, ("sgd", {}), seed=1, options=LearnerOptions(tta=tta))
        learner.update_evaluation_nets()
        losses.append(learner.evaluate(loader, lambda images: None)["loss"])
        net = mirror_averaged(learner.evaluation_net) if tta else learner.evaluation_net
        assert losses[-1] == pytest.approx(validate(net, loader, "float32", ON_ONE)["loss"])
    assert losses[0] != losses[1]


def test_flags_that_do_not_suit_the_images_are_refused(tmp_path, digits):
    for flags, words in ((["--tta"], "mirrored"), (["--cutout", "32"], "nothing of images of 32x32")):
        args = parse_arguments(training_parser("", datasets=["digits"]), ["--log-dir", str(tmp_path), *flags])
        with pytest.raises(UserError, match=words):
            train(small_net, describe(digits, "cifar", 56, "bottleneck"), digits, ON_ONE, args)


def test_a_rate_for_so_many_images_is_scaled_with_those_of_a_step(tmp_path, digits):
    def rates(name, *flags):
        flags = ("--log-dir", tmp_path, "--run-name", name, "--limit", 32, "--batch-size", 4, "--seed", 1, *flags)
        args = parse_arguments(training_parser("", datasets=["digits"]), list(map(str, flags)))
        contexts = [mx.cpu(0), mx.cpu(1)]
        train(small_net, describe(digits, "cifar", 56, "bottleneck"), digits, SingleProcess(contexts), args)
        with open(tmp_path / "text" / f"{name}.csv") as file:
            return [float(row["lr"]) for row in csv.DictReader(file)]

    fall = ("--epochs", 2, "--lr-steps", 1, "--lr-factor", 0.5)
    assert rates("plain", "--lr", 0.01, *fall) == pytest.approx([0.01, 0.005])
    per = ("--lr", 0.01, "--lr-per", 32, *fall)
    assert rates("per", *per) == pytest.approx([0.0025, 0.00125])
    assert rates("added", *per, "--accumulate", 2) == pytest.approx([0.005, 0.0025])


def test_a_training_saves_the_average_beside_the_weights(tmp_path, digits):
    flags = ["--log-dir", str(tmp_path), "--run-name", "mean", "--epochs", "2", "--seed", "1", "--batch-size", "8"]
    flags += ["--limit", "24", "--ema", "0.9", "--save-period", "2", "--cutmix", "1", "--clip-grad", "1"]
    args = parse_arguments(training_parser("test", datasets=["digits"]), flags)
    train(small_net, describe(digits, "cifar", 56, "bottleneck"), digits, ON_ONE, args)
    with open(tmp_path / "text" / "mean.csv") as file:
        rows = list(csv.DictReader(file))
    folder = tmp_path / "params" / "mean"
    assert float(rows[-1]["val_ema_accuracy"]) >= 0 and rows[-1]["val_ema_loss"] != rows[-1]["val_loss"]
    for stem in ("last", "best", "epoch-0002"):
        assert (folder / f"{stem}.params").is_file() and (folder / f"{stem}-ema.params").is_file()
    net = initialize(small_net(), [mx.cpu()], mx.init.Zero())
    net.load_parameters(str(folder / "last-ema.params"))
    validation = ShardedLoader(digits, "test", LoaderOptions(8, seed=1, limit=24), [mx.cpu()], training=False)
    assert float(rows[-1]["val_ema_loss"]) == pytest.approx(
        validate(net, validation, "float32", ON_ONE)["loss"], rel=1e-5
    )
    log = (tmp_path / "text" / "mean.log").read_text()
    best = max(float(row["val_ema_accuracy"]) for row in rows)
    assert f"best validation accuracy {best:.4f}" in log and "EMA accuracy" in log


def test_the_next_batch_is_fetched_while_devices_compute_and_its_error_comes_in_its_turn():
    def items():
        yield from "ab"
        raise UserError("the third is broken")

    ahead = Ahead(items())
    ahead.fetch()
    assert next(ahead) == "a"
    ahead.fetch()
    ahead.fetch()
    assert next(ahead) == "b"
    ahead.fetch()  # says nothing yet
    with pytest.raises(UserError, match="third"):
        next(ahead)
    assert list(Ahead([])) == [] and list(Ahead([1, 2])) == [1, 2]
    done = []

    class Group(SingleProcess):
        def agree(self, loss, figures):
            done.append("waited")
            return super().agree(loss, figures)

    learner = Learner(small_net, Group([mx.cpu()]), ("sgd", {}), seed=1)
    images, targets = examples(4)
    learner.step([Example(images, targets, targets)], 0.1, 0, 0, meanwhile=lambda: done.append("fetched"))
    assert done == ["fetched", "waited"]


def test_all_workers_have_the_first_ones_averages_of_statistics():
    class Worker(SingleProcess):
        size, said = 2, None

        def __init__(self, rank):
            super().__init__([mx.cpu()])
            self.rank = rank

        def sum(self, name, numbers):
            Worker.said = numbers if self.rank == 0 else Worker.said + numbers
            return Worker.said

    for rank in (0, 1):
        net = small_net()
        net.initialize(mx.init.One())
        net(mx.nd.ones((1, 3, 32, 32)))
        average = WeightAverage(net, FlatTrainer(net.collect_params(), "sgd", {}), 0.5)
        names = [name for name in average.arrays if "running" in name]
        assert len(names) >= 2
        for number, name in enumerate(names):
            average.arrays[name][:] = 10 * rank + number
        weights = {name: array.asnumpy() for name, array in average.arrays.items() if name not in names}
        average.broadcast_statistics(Worker(rank))
        assert [average.arrays[name].mean().asscalar() for name in names] == list(range(len(names)))
        assert all((average.arrays[name].asnumpy() == weight).all() for name, weight in weights.items())


def handed_over(monkeypatch, folder, dataset, *flags, make_net=small_net):
    """What `training.loop.fit` is given for some flags."""
    given = []
    monkeypatch.setattr("training.commands.fit", lambda *arguments: given.extend(arguments))
    flags = ("--log-dir", folder, "--seed", 1, "--batch-size", 4, "--limit", 40, *flags)
    args = parse_arguments(training_parser("", datasets=["digits"]), list(map(str, flags)))
    train(make_net, describe(dataset, "cifar", 56, "bottleneck"), dataset, ON_ONE, args)
    return given


def test_what_the_flags_say_reaches_the_training(tmp_path, digits, monkeypatch):
    flags = ("--epochs", 20, "--warmup-epochs", 2, "--lr", 0.5, "--lr-mode", "cosine", "--mix-up", 1, "--alpha", 0.3)
    flags += ("--cutmix", 0.7, "--mix-up-off-epochs", 4, "--epsilon", 0.2, "--label-noise", 0.4, "--workers", 3)
    flags += ("--random-erasing", 0.6, "--accumulate", 2, "--clip-grad", 3, "--ema", 0.9, "--tta")
    flags += ("--optimizer", "sgd", "--momentum", 0.8, "--wd", 0.01, "--nan-action", "skip", "--save-period", 5)
    flags += ("--checkpoint-minutes", 7, "--log-interval", 11)
    learner, run, loaders, transform, rates, epochs = handed_over(
        monkeypatch, tmp_path, digits._replace(mirror=True), *flags
    )
    assert learner._options == LearnerOptions("float32", False, 2, 3, 0.9, True)
    options = run._options
    assert (options.nan_action, options.save_period, options.viz_period) == ("skip", 5, 0)
    assert (options.checkpoint_minutes, options.log_interval) == (7, 11)
    assert {p.grad_req for p in learner.net.collect_params().values()} == {"add", "null"}
    optimizer = learner.trainer._optimizer
    assert (type(optimizer).__name__, optimizer.momentum, optimizer.wd) == ("SGD", 0.8, 0.01)
    training, validation = (loader._loaders[0] for loader in loaders)
    assert training._options == LoaderOptions(4, seed=1, threads=3, limit=40, label_noise=0.4, accumulate=2)
    assert training._label_shifts.any() and validation._label_shifts is None
    assert (type(training._erasing), training._erasing.probability) == (RandomErasing, 0.6)
    assert validation._erasing is None
    found = (transform._alpha, transform._cutmix_alpha, transform._mixup_epochs, transform._epsilon)
    assert found == (0.3, 0.7, 16, 0.2)
    steps = loaders[0].steps
    assert [rates(0), rates(2 * steps - 1)] == pytest.approx([0.005, 0.5])
    assert epochs == 20 and rates(20 * steps - 1) == pytest.approx(0, abs=1e-9)


def test_precision_and_seed_reach_the_training(tmp_path, digits, monkeypatch):
    learner, _, _, transform, *_ = handed_over(monkeypatch, tmp_path, digits)
    assert learner._options.dtype == "float32" and transform.metric_name(0) == "accuracy"
    assert transform._seed == learner._seed == 1
    made = []
    monkeypatch.setattr("training.commands.Learner", lambda *arguments: made.append(arguments[-1].dtype))
    handed_over(monkeypatch, tmp_path, digits, "--bfloat16")
    assert made == ["bfloat16"]
    assert precision(SimpleNamespace(bfloat16=False, float16=True)) == "float16"


def test_another_seed_begins_with_other_weights():
    first, again, other = (Learner(small_net, ON_ONE, ("sgd", {}), seed).net for seed in (1, 1, 2))
    weights = [net.collect_params(".*weight").values() for net in (first, again, other)]
    same, different = (
        [(one.data() == two.data()).min().asscalar() for one, two in zip(weights[0], others)] for others in weights[1:]
    )
    assert all(same) and not any(different)


def test_workers_have_the_first_ones_seed(monkeypatch):
    class Second(SingleProcess):
        rank, is_main_process = 1, False

        def sum(self, name, numbers):
            assert (name, list(numbers)) == ("seed", [0])
            return [7]

    given = []

    def start(*arguments):
        given.extend(arguments)
        return contextlib.nullcontext(Second([mx.cpu()]))

    monkeypatch.setattr("training.commands.process_group.start", start)
    flags = ["--seed", "3", "--sync-timeout", "2", "--gradient-compression", "fp16"]
    args = parse_arguments(training_parser("", datasets=["digits"]), flags)
    with join_group(args):
        assert args.seed == args.settings["seed"] == 7
    assert given == [None, 0, True, 120]


def test_workers_with_other_images_are_told():
    class Two(SingleProcess):
        size = 2

        def sum(self, name, numbers):
            return np.stack([numbers[0], others[None, :]])

    group, loaders = Two([mx.cpu()]), [SimpleNamespace(num_images=number) for number in (50, 10)]
    others = np.array([50, 10])
    check_same_images(group, loaders)
    others = np.array([49, 10])
    with pytest.raises(UserError, match="the first one 50 and 10, another 49 and 10"):
        check_same_images(group, loaders)


def test_a_worker_takes_the_gpu_of_its_number(monkeypatch):
    monkeypatch.setattr(mx.context, "num_gpus", lambda: 8)
    assert devices_of(1, first=3) == [mx.gpu(3)] and devices_of(2) == [mx.gpu(0), mx.gpu(1)]
    with pytest.raises(UserError, match="MXNet sees 8"):
        devices_of(1, first=8)


def test_a_gpu_that_others_have_filled_is_said(monkeypatch):
    monkeypatch.setattr(mx.context, "num_gpus", lambda: 2)
    monkeypatch.setattr(mx.context, "gpu_memory_info", lambda index: (16e9, 16e9) if index == 0 else (1e6, 16e9))
    assert devices_of(1) == [mx.gpu(0)]
    with pytest.raises(UserError, match="GPU 1 has 1 MB free"):
        devices_of(2)


@pytest.mark.parametrize("mode", ["cosine", "step"])
def test_each_step_has_its_own_rate_and_fetches_and_mixes_the_next_batch_meanwhile(tmp_path, digits, monkeypatch, mode):
    rates, mixed, ahead = [], [], []
    step, transform = Learner.step, TargetTransform.__call__

    def noted_step(self, examples, learning_rate, epoch, number, meanwhile):
        rates.append(learning_rate)
        mixed.clear()
        found = step(self, examples, learning_rate, epoch, number, meanwhile)
        ahead.append(bool(mixed))
        return found

    monkeypatch.setattr(Learner, "step", noted_step)
    monkeypatch.setattr(
        TargetTransform, "__call__", lambda self, batch: (mixed.append(True), transform(self, batch))[1]
    )
    flags = ["--epochs", 2, "--limit", 24, "--batch-size", 8, "--seed", 1, "--lr", 0.1, "--lr-mode", mode]
    flags += ["--warmup-epochs", 1, "--lr-steps", 1.5, "--log-dir", tmp_path, "--run-name", "run"]
    args = parse_arguments(training_parser("", datasets=["digits"]), list(map(str, flags)))
    train(small_net, describe(digits, "cifar", 56, "bottleneck"), digits, ON_ONE, args)
    expected = learning_rates(mode, 0.1, 2, 3, 1, Falls([1.5], 0.1))
    assert rates == [expected(number) for number in range(6)] and len(set(rates)) > 3
    assert ahead == [True, True, False] * 2  # an epoch's last step has no next one


def test_a_network_that_trains_keeps_its_matrices():
    net = initialize(AttentionNetCifar(10, (1, 1, 1), (1, 1, 1)), [mx.cpu()], mx.init.Zero())
    assert hasattr(net, "matrices")


def test_memory_saving_and_cutout_reach_the_training(tmp_path, digits, monkeypatch):
    def in_pieces():
        net = InPieces()
        net.add(*small_net()._children.values())
        return net

    learner, _, loaders, *_ = handed_over(
        monkeypatch, tmp_path, digits, "--memory-saving", "--cutout", 16, make_net=in_pieces
    )
    assert isinstance(learner._forward, Recomputation)
    erasing = loaders[0]._loaders[0]._erasing
    assert (type(erasing), erasing.length) == (Cutout, 16)


def test_a_learner_adds_its_batches_up():
    def frozen():
        net = small_net()
        freeze_normalization(net)
        return net

    images, targets = examples(8)
    ends = []
    for parts in (1, 2):
        learner = Learner(frozen, ON_ONE, ("sgd", {}), seed=1, options=LearnerOptions(accumulate=parts))
        pieces = [slice(first, first + 8 // parts) for first in range(0, 8, 8 // parts)]
        for step in range(3):
            learner.step([Example(images[p], targets[p], targets[p]) for p in pieces], 0.1, 0, step)
        ends.append([p.data().asnumpy() for p in learner.net.collect_params().values()])
    for whole, added in zip(*ends):
        np.testing.assert_allclose(added, whole, rtol=1e-4, atol=1e-6)
