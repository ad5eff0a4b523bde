"""Sizes of a network: trainable parameters and multiply-adds."""

import json
from math import prod

import mxnet as mx

__all__ = ["multiply_adds", "products", "trainable_parameters"]


def trainable_parameters(net):
    """Number of values the optimizer changes, in an initialized or uninitialized network of known shapes."""
    return sum(prod(p.shape) for p in net.collect_params().values() if p.grad_req != "null")


def multiply_adds(net, input_shape):
    """Multiply-adds of convolutions and fully connected layers for one batch of ``input_shape`` (N, C, H, W).

    The way the literature counts: biases, normalization, pooling, interpolation and sums are left out.
    """
    # one row of the weight makes one output value
    return sum(prod(written) * prod(weight[1:]) for _, _, weight, written in products(net, input_shape))


def products(net, input_shape):
    """The convolutions and fully connected layers in the order in which they run on a batch of ``input_shape``.

    Yields for each its node in the network's graph, and the shapes of what it reads, its weight and what it writes.
    """
    graph = net(mx.sym.var("data"))
    internals = graph.get_internals()
    _, shapes, _ = internals.infer_shape(data=input_shape)
    shape = {name.removesuffix("_output"): shape for name, shape in zip(internals.list_outputs(), shapes)}
    nodes = json.loads(graph.tojson())["nodes"]
    for node in nodes:
        if node["op"] in ("Convolution", "FullyConnected"):
            read, weight = (shape[nodes[index]["name"]] for index, *_ in node["inputs"][:2])
            yield node, read, weight, shape[node["name"]]
