"""Interpolation matrices that are not computed in each step: the same numbers, for any size, and nothing more saved."""

import json

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd

from model import get_attention_cifar
from model.attention_net import AttentionNet, AttentionNetCifar
from model.constants import KEPT, interpolations, keep_matrices
from model.onednn import hybridize
from tests.test_loop import small_net
from tests.test_model import shallow


def twins(network, devices, dtype="float32"):
    """A network that computes its matrices in its graph, and one of the same parameters that does not."""
    nets = [shallow(network, 10) for _ in range(2)]
    for net in nets:
        mx.random.seed(3)
        net.initialize(mx.init.MSRAPrelu(), ctx=devices)
        net.cast(dtype)
        hybridize(net)
    keep_matrices(nets[1])
    return nets


def step(net, shape, device):
    """Logits and gradients of random images."""
    images = mx.nd.array(np.random.default_rng(1).normal(size=shape), ctx=device)
    with autograd.record():
        logits = net(images)
    logits.backward()
    gradients = [p.grad(device).asnumpy() for p in net.collect_params().values() if p.grad_req != "null"]
    return [logits.asnumpy(), *gradients]


@pytest.mark.parametrize("network, sizes", [(AttentionNetCifar, [(16, 16), (32, 24)]), (AttentionNet, [(64, 64)])])
def test_the_bits_are_those_of_matrices_computed_in_the_step(network, sizes):
    devices = [mx.cpu(0), mx.cpu(1)]
    nets = twins(network, devices)
    for size in [*sizes, sizes[0]]:  # the first once more: its graph has seen another since
        for device, images in zip(devices, (2, 3)):
            expected, found = (step(net, (images, 3, *size), device) for net in nets)
            assert all(a.tobytes() == b.tobytes() for a, b in zip(expected, found))


def test_matrices_are_made_on_the_device_of_the_images(monkeypatch):
    # a GPU refuses an array of the CPU among its own; CPUs do not, so what makes arrays is watched
    made = []
    for name in ("ones", "zeros", "full", "arange", "array", "eye"):
        make = getattr(mx.nd, name)
        monkeypatch.setattr(
            mx.nd,
            name,
            lambda *shape, make=make, ctx=None, **options: made.append(ctx) or make(*shape, ctx=ctx, **options),
        )
    net = shallow(AttentionNetCifar, 10)
    for upsample in interpolations(net):
        found = upsample.matrices_of((2, 8, 4, 6), (2, 8, 8, 12), mx.cpu(1))
        assert {matrix.context for matrix in found} == {mx.cpu(1)}
    assert None not in made


def operators(symbol):
    return [node["op"] for node in json.loads(symbol.tojson())["nodes"] if node["op"] != "null"]


def test_no_matrix_is_computed_in_the_graph():
    net, kept = twins(AttentionNetCifar, [mx.cpu()])
    for each in (net, kept):
        each(mx.nd.zeros((1, 3, 16, 16)))
    before, after = (operators(each._cached_graph[1]) for each in (net, kept))
    assert {"_contrib_arange_like", "slice"} <= set(before)
    assert not {"_contrib_arange_like", "slice", "abs", "broadcast_like", "broadcast_mul"} & set(after)
    assert len(after) < 0.65 * len(before)


def test_parameters_and_the_network_as_a_symbol_stay_what_they_are(tmp_path):
    net, kept = twins(AttentionNetCifar, [mx.cpu()])
    kept(mx.nd.zeros((1, 3, 16, 16)))
    assert list(net._collect_params_with_prefix()) == list(kept._collect_params_with_prefix())
    kept.save_parameters(str(tmp_path / "kept.params"))
    shallow(AttentionNetCifar, 10).load_parameters(str(tmp_path / "kept.params"))
    arguments = kept(mx.sym.var("data")).list_arguments()
    assert arguments[0] == "data" and set(arguments[1:]) <= set(kept.collect_params())
    assert len(operators(kept(mx.sym.var("data")))) == len(operators(net(mx.sym.var("data"))))


def test_a_few_sizes_are_remembered_and_equal_matrices_are_one():
    _, net = twins(AttentionNetCifar, [mx.cpu()])
    for images in range(1, KEPT + 3):
        matrices = net.matrices.of(mx.nd.zeros((images, 3, 16, 16)))
    assert len(net.matrices._known) == KEPT
    assert net.matrices.of(mx.nd.zeros((images, 3, 16, 16))) is matrices
    deep = get_attention_cifar(10, 92)
    deep.initialize(mx.init.Zero())
    keep_matrices(deep)
    matrices = deep.matrices.of(mx.nd.zeros((1, 3, 32, 32)))
    # a module of three levels, two of two, three of one; 16 pixels from 8 and 8 from 4 need one matrix, 32 from 16 two
    assert len(matrices) == 4 + 2 * 2 + 3 and len(set(map(id, matrices))) == 4


def test_half_precision_has_matrices_in_it():
    _, net = twins(AttentionNetCifar, [mx.cpu()], "float16")
    assert {matrix.dtype for matrix in net.matrices.of(mx.nd.zeros((1, 3, 16, 16)))} == {np.float16}


def test_a_network_without_interpolation_stays_what_it_is():
    net = small_net()
    kind = type(net)
    keep_matrices(net)
    assert type(net) is kind
