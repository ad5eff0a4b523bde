"""Fused operators and memory layouts that pay on a CPU. The numbers stay the same to rounding."""

import json
from collections import Counter

import mxnet as mx

from model.attention import InBlocks
from model.units import NormReLU, SqueezeExcitation

__all__ = ["folding", "fuse"]


BLOCK = 16  # channels


def fuse(net, to_fold=False):
    """Prepare a network, before it first runs, for float32 on a CPU: fewer passes over memory.

    Maps are put in oneDNN's blocked layout after each interpolation and each attention's product, and normalization
    and ReLU become one operator wherever that is safe. The operator remembers which values it cut off in the order in
    which its input lies in memory; it fails, or its gradient is wrong, where it then meets another layout. So it is
    used only where the input is sure to lie in blocks: where it comes from a convolution, by way of operators that
    keep the layout. A network with convolutions that do not work in whole blocks stays as it is.

    With ``to_fold``, normalization and ReLU stay apart where `folding` makes them parts of a convolution.
    """
    nodes = graph(net)
    if not all(works_in_blocks(node["attrs"]) for node in nodes if node["op"] == "Convolution"):
        return

    def activate(block):
        if isinstance(block, InBlocks):
            block.active = True

    def fuse_norm(block):
        if isinstance(block, NormReLU):
            block.fuse_relu = f"{block.name}_fwd" in fusible

    net.apply(activate)
    nodes = graph(net)
    readers = Counter(index for node in nodes for index, *_ in node["inputs"])
    blocked, fusible = [], set()
    for node in nodes:
        inputs = [blocked[index] for index, *_ in node["inputs"]]
        if node["op"] == "BatchNorm" and inputs[0]:
            source = node["inputs"][0][0]
            if not (to_fold and nodes[source]["op"] == "Convolution" and readers[source] == 1):
                fusible.add(node["name"])
        blocked.append(writes_blocks(node["op"], inputs))
    net.apply(fuse_norm)


def folding(net):
    """The backend, for hybridize(), that makes normalization, ReLU and sums parts of the convolutions before them.

    For inference: the graph keeps the parameters that it first sees. None where there is no such backend: on a GPU,
    and for squeeze-and-excitation, where MXNet 1.9.1 confuses the weights of a unit's convolutions.
    """
    first_parameter = next(iter(net.collect_params().values()))
    found = []
    net.apply(lambda block: found.append(isinstance(block, SqueezeExcitation)))
    on_cpu = first_parameter.list_ctx()[0].device_type == "cpu"
    return "MKLDNN" if on_cpu and not any(found) else None


def graph(net):
    """The nodes of a network's graph, in the order in which they run."""
    return json.loads(net(mx.sym.var("data")).tojson())["nodes"]


def works_in_blocks(convolution):
    """Whether oneDNN has but one layout for a convolution's maps; ``convolution`` are its attributes."""
    filters, groups = int(convolution["num_filter"]), int(convolution.get("num_group", 1))
    return filters % BLOCK == 0 and groups in (1, filters)


def writes_blocks(operator, inputs):
    """Whether an operator writes a map in blocks; ``inputs`` say it of those it reads."""
    if operator in ("BatchNorm", "Activation", "Pooling"):
        return inputs[0]
    if operator in ("elemwise_add", "add_n"):  # the sum may be written over any of them
        return all(inputs)
    return operator == "Convolution"
