"""What scripts/check_gpu.sh asks of a device: the same numbers as the straightforward form on a CPU.

They need a GPU, and are skipped without one. RAN_CHECK_DEVICE=cpu makes them ask the same of a CPU's fast form.
"""

import os

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd

from base.devices import contexts
from base.errors import UserError
from data.augmentation import PaddedCrop, RandomErasing
from data.imagenet import open_imagenet
from data.loader import Loader, LoaderOptions
from model import get_attention_cifar, units
from model.plain import make_plain
from tests.drawn_images import draw_photographs
from tests.test_bfloat16 import without_chaos
from training.learner import INITIALIZER, initialize

pytestmark = pytest.mark.gpu

# The networks start nearly as shortcuts: no normalization turns rounding into another gradient. Gradients of a CPU's
# two forms are 0.0008 apart at most, and those of its bfloat16, 8 times as coarse as float16, 0.14; a wrong operator is
# far beyond either.
NEAR, HALF_NEAR = 0.01, 0.1


@pytest.fixture(scope="module")
def device():
    if os.environ.get("RAN_CHECK_DEVICE") == "cpu":
        return mx.cpu()
    try:
        return contexts(1)[0]
    except UserError as error:
        if os.environ.get("RAN_CHECK_DEVICE"):
            pytest.fail(str(error))
        pytest.skip("no GPU here (RAN_CHECK_DEVICE=cpu checks the CPU)")


def outputs_and_gradients(net, device, dtype, size):
    """Logits and, in the order of the parameters, gradients of a network after one step on two images."""
    draw = np.random.default_rng(0)
    images = mx.nd.array(draw.normal(size=(2, 3, size, size)), ctx=device, dtype=dtype)
    with autograd.record():
        logits = net(images).astype("float32")
        loss = (logits * mx.nd.array(draw.normal(size=(2, 10)), ctx=device)).sum()
    loss.backward()
    named = net._collect_params_with_prefix()
    gradients = {name: p.grad().astype("float32").asnumpy() for name, p in named.items() if p.grad_req != "null"}
    return logits.asnumpy(), gradients


def twins(device, dtype, unit):
    """A network as it trains on a device, and the straightforward one on the CPU with the same parameters."""
    net, plain = (without_chaos(get_attention_cifar(10, 56, unit=units[unit])) for _ in range(2))
    make_plain(plain).initialize(mx.init.Zero())
    mx.random.seed(3)
    initialize(net, [device], INITIALIZER, dtype)
    sources, targets = net._collect_params_with_prefix(), plain._collect_params_with_prefix()
    for name, parameter in targets.items():
        parameter.set_data(sources[name].data().as_in_context(mx.cpu()).astype("float32"))
    return net, plain


def difference(value, expected):
    """How far arrays are apart, next to the size of what is expected."""
    return float(np.linalg.norm(value - expected) / max(np.linalg.norm(expected), 1e-12))


def assert_alike(device, dtype, size, unit, most):
    net, plain = twins(device, dtype, unit)
    logits, gradients = outputs_and_gradients(net, device, dtype, size)
    expected, others = outputs_and_gradients(plain, mx.cpu(), "float32", size)
    assert difference(logits, expected) < most
    together, expected = (np.concatenate([array.ravel() for array in each.values()]) for each in (gradients, others))
    assert gradients.keys() == others.keys()
    assert difference(together, expected) < most


@pytest.mark.parametrize("size", [32, 64])
def test_operators_give_a_cpus_outputs_and_gradients(device, size):
    assert_alike(device, "float32", size, "bottleneck", NEAR)


@pytest.mark.parametrize("unit", ["resnext", "se"])
def test_operators_of_other_units(device, unit):
    assert_alike(device, "float32", 32, unit, NEAR)


@pytest.mark.parametrize("size", [32, 64])
def test_half_precision_is_near_a_cpus(device, size):
    if device.device_type == "cpu":
        pytest.skip("MXNet has no float16 matrix product on a CPU")
    assert_alike(device, "float16", size, "bottleneck", HALF_NEAR)


@pytest.mark.parametrize("training", [False, True])
def test_batches_of_photographs_are_nearly_those_of_a_cpu(device, tmp_path, training):
    """Decoders and resizing differ by a few levels; another window, colour or rectangle is far beyond that."""
    for split in ("train", "val"):
        draw_photographs(tmp_path / split, 12)
    dataset = open_imagenet(tmp_path, size=64, jitter=0.4)._replace(erasing=RandomErasing(0.5, 64))
    split, options = "train" if training else "test", LoaderOptions(4, seed=5)
    ours, others = (Loader(dataset, split, options, where, training).epoch(0) for where in (device, mx.cpu()))
    for _, batch, expected in zip(range(3), ours, others):
        np.testing.assert_array_equal(batch.labels.asnumpy(), expected.labels.asnumpy())
        images, pixels = batch.images.asnumpy(), expected.images.asnumpy()
        assert np.abs(images - pixels).mean(axis=(1, 2, 3)).max() < 0.1
        if training:
            np.testing.assert_array_equal((images == 0).all(axis=1), (pixels == 0).all(axis=1))  # what is erased


@pytest.mark.parametrize("training", [False, True])
def test_batches_are_those_of_a_cpu(device, digits, training):
    dataset = digits._replace(training_crop=PaddedCrop(4), mirror=True)
    split = "train" if training else "test"
    options = LoaderOptions(32, seed=5)
    ours, others = (Loader(dataset, split, options, where, training) for where in (device, mx.cpu()))
    for _, batch, expected in zip(range(3), ours.epoch(0), others.epoch(0)):
        assert batch.images.context == device
        np.testing.assert_array_equal(batch.labels.asnumpy(), expected.labels.asnumpy())
        np.testing.assert_allclose(batch.images.asnumpy(), expected.images.asnumpy(), atol=0.05)
