"""Sizes of a network: trainable parameters and multiply-adds."""

import json
from math import prod

import mxnet as mx

__all__ = ["multiply_adds", "trainable_parameters"]


def trainable_parameters(net):
    """Number of values the optimizer changes, in an initialized or uninitialized network of known shapes."""
    return sum(prod(p.shape) for p in net.collect_params().values() if p.grad_req != "null")


def multiply_adds(net, input_shape):
    """Multiply-adds of convolutions and fully connected layers for one batch of ``input_shape`` (N, C, H, W).

    The way the literature counts: biases, normalization, pooling, interpolation and sums are left out.
    """
    graph = net(mx.sym.var("data"))
    internals = graph.get_internals()
    _, shapes, _ = internals.infer_shape(data=input_shape)
    shape = dict(zip(internals.list_outputs(), shapes))
    nodes = json.loads(graph.tojson())["nodes"]
    total = 0
    for node in nodes:
        if node["op"] in ("Convolution", "FullyConnected"):
            weight = nodes[node["inputs"][1][0]]["name"]
            # one row of the weight makes one output value
            total += prod(shape[node["name"] + "_output"]) * prod(shape[weight][1:])
    return total
