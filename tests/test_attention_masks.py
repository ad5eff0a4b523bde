"""The masks a network gives of itself."""

import mxnet as mx
import numpy as np
import pytest

from model import AttentionNetCifar, units
from model.attention import SoftMask
from model.onednn import hybridize


def small_net(unit="bottleneck"):
    """A network of stage 1, once, and stages 2 and 3, twice each, with the smallest modules."""
    mx.random.seed(1)
    net = AttentionNetCifar(3, [1, 1, 1], [1, 2, 2], unit=units[unit])
    net.initialize(mx.init.MSRAPrelu())
    return net


@pytest.fixture(scope="module")
def images():
    return mx.nd.array(np.random.default_rng(0).normal(size=(2, 3, 32, 32)))


@pytest.fixture(scope="module")
def net():
    return small_net()


def test_every_module_has_maps_of_its_stages_shape(net, images):
    masks = net.attention_masks(images)
    expected = {1: (2, 128, 32, 32), 2: (2, 256, 16, 16), 3: (2, 512, 8, 8)}
    names = [f"stage {stage}, module {number}" for stage, number in [(1, 1), (2, 1), (2, 2), (3, 1), (3, 2)]]
    assert list(masks) == names
    for name, maps in masks.items():
        assert {part.shape for part in maps} == {expected[int(name[6])]}


def test_masks_are_those_that_the_classification_uses(net, images):
    seen = []
    handles = []
    net.apply(
        lambda block: (
            isinstance(block, SoftMask)
            and handles.append(block.register_forward_hook(lambda _, inputs, output: seen.append(output)))
        )
    )
    net(images)  # imperatively
    for handle in handles:
        handle.detach()
    masks = net.attention_masks(images)
    assert len(seen) == len(masks) == 5
    for expected, maps in zip(seen, masks.values()):
        np.testing.assert_allclose(maps.mask.asnumpy(), expected.asnumpy(), rtol=1e-4, atol=1e-6)
        assert maps.mask.min().asscalar() >= 0 and maps.mask.max().asscalar() <= 1


def test_the_features_after_are_those_before_weighed_by_the_mask(net, images):
    for maps in net.attention_masks(images).values():
        expected = (1 + maps.mask) * maps.trunk
        np.testing.assert_allclose(maps.output.asnumpy(), expected.asnumpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("unit", ["bottleneck", "se"])
def test_a_network_made_fast_gives_the_same_masks_and_then_the_same_classes(images, unit):
    plain, fast = small_net(unit), small_net(unit)
    hybridize(fast, inference=True)
    before = fast(images).asnumpy()
    for expected, found in zip(plain.attention_masks(images).values(), fast.attention_masks(images).values()):
        for name in expected._fields:
            one, other = getattr(expected, name).asnumpy(), getattr(found, name).asnumpy()
            np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-4 * abs(one).max())
    np.testing.assert_array_equal(fast(images).asnumpy(), before)
