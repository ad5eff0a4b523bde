"""Networks made fast on a CPU, where oneDNN computes the convolutions. No other file of the networks knows of it.

oneDNN keeps the maps between convolutions in blocks of channels. MXNet's own operators, such as products, read and
write plain maps, and whichever operator meets a map in the other layout converts it, each time. `hybridize` has maps
converted once, where that is less work, and has oneDNN do several operators' work in one pass over memory. To do so it
gives blocks of the network another class, with the same parameters under the same names. The numbers stay the same to
rounding.
"""

import json
from collections import Counter

import mxnet as mx
from mxnet.gluon import nn

from base.runtime import uses_amx
from model.attention import AttentionModule, SoftMask
from model.bfloat16 import BLOCK, compute_in_bfloat16, outside_squeeze_excitation, works_in_blocks
from model.extension import descendants, extend
from model.units import NormReLU, SqueezeExcitation
from model.upsample import Upsample

__all__ = ["forget_graph", "hybridize"]


def hybridize(net, static=True, inference=False, bfloat16=False):
    """Make a network one graph, in the form that is fastest on its devices.

    Parameters
    ----------
    net : HybridBlock
        Initialized, of its final type, and not run or hybridized before. On a CPU it is one of float32.
    static : bool
        Whether the graph keeps its memory from one batch to the next. That is faster.
    inference : bool
        Whether the network only classifies. On a CPU its graph then keeps a form of the parameters that it first sees:
        call `forget_graph` when they have changed. A network that trains must be another one, because oneDNN changes
        the layout of the weights at a moment of its own choosing, and training steps would not repeat bit for bit.
    bfloat16 : bool
        Whether it computes in bfloat16, on a CPU that can (`base.runtime`).
    """
    backend = None
    if bfloat16:
        compute_in_bfloat16(net, inference)
        if inference or not uses_amx():  # whose gradients may have another layout, which the one operator refuses
            fuse(net, folding=False)
    elif next(iter(net.collect_params().values())).list_ctx()[0].device_type == "cpu":
        if inference and not holds_squeeze_excitation(net):
            backend = "MKLDNN"  # makes normalization, ReLU and sums parts of the convolutions before them
        optimize(net, folding=backend is not None)
    net.hybridize(backend=backend, static_alloc=static, static_shape=static)


def forget_graph(net):
    """Have a network that `hybridize` prepared for inference make its graph anew, from its parameters as they are."""
    net._clear_cached_op()


def holds_squeeze_excitation(net):
    """Whether MXNet 1.9.1's backend would confuse the weights of the convolutions in a network's units."""
    return any(isinstance(block, SqueezeExcitation) for block in descendants(net))


def optimize(net, folding):
    """Prepare a network for `hybridize`: fewer passes over memory.

    Products read plain maps. Where all convolutions work in whole blocks, maps are converted to blocks right after
    products, and normalization and ReLU become one operator wherever that is safe. Where some do not, they get blocks
    around them, because normalization between two layouts takes many times as long.

    Parameters
    ----------
    net : HybridBlock
    folding : bool
        Whether normalization and ReLU stay apart where the backend makes them parts of a convolution.
    """
    extend(net, {SoftMask: PlainLayoutSoftMask, AttentionModule: PlainLayoutAttentionModule})
    extend(net, {SqueezeExcitation: PlainLayoutSqueezeExcitation})
    if all(has_one_layout(node["attrs"]) for node in graph(net) if node["op"] == "Convolution"):
        extend(net, {Upsample: BlockedLayoutUpsample, AttentionModule: BlockedLayoutAttentionModule})
        fuse(net, folding)
    elif not folding:
        _, *others = (block for block in outside_squeeze_excitation(net) if isinstance(block, nn.Conv2D))
        extend(net, {nn.Conv2D: BlockedLayoutConvolution}, lambda block: block in others and not works_in_blocks(block))


def fuse(net, folding):
    """Make normalization and ReLU one operator wherever that is safe; ``folding`` is that of `optimize`."""
    fusible = fusible_normalizations(graph(net), folding)
    extend(net, {NormReLU: FusedNormReLU}, lambda block: f"{block.name}_fwd" in fusible)


def to_plain_layout(x):
    """The same map, which a oneDNN operator wrote, in MXNet's layout.

    An operator that is not of oneDNN would convert what it reads by itself, but in each pass again, and would keep
    memory for that. Reshaping does it once.
    """
    return x.reshape((0, 0, 0, 0))


def to_blocked_layout(F, x, channels):
    """The same map, which an operator of MXNet's own wrote, in oneDNN's layout, for all operators that read it.

    It is a convolution by ones, each channel with itself. Shapes: (N, channels, H, W) -> (N, channels, H, W).
    """
    ones = F.ones((channels, 1, 1, 1))
    return F.Convolution(x, ones, kernel=(1, 1), num_filter=channels, num_group=channels, no_bias=True)


class PlainLayoutSoftMask(SoftMask):
    """A mask whose values are plain before the sigmoid, which keeps the layout, for the product that reads them."""

    def logits(self, x):
        return to_plain_layout(super().logits(x))


class PlainLayoutAttentionModule(AttentionModule):
    """An attention module whose product reads a plain trunk."""

    def combine(self, F, mask, trunk):
        return super().combine(F, mask, to_plain_layout(trunk))


class BlockedLayoutAttentionModule(AttentionModule):
    """An attention module whose product goes on in blocks."""

    def combine(self, F, mask, trunk):
        return to_blocked_layout(F, super().combine(F, mask, trunk), self.channels)


class PlainLayoutSqueezeExcitation(SqueezeExcitation):
    """Squeeze-and-excitation whose pooling and product read a plain map."""

    def hybrid_forward(self, F, x):
        return super().hybrid_forward(F, to_plain_layout(x))


class BlockedLayoutConvolution(nn.Conv2D):
    """A convolution of another layout, which reads blocks and writes blocks, of gradients too."""

    def hybrid_forward(self, F, x, weight, bias=None):
        y = super().hybrid_forward(F, to_blocked_layout(F, x, self._in_channels), weight, bias)
        return to_blocked_layout(F, y, self._channels)


class BlockedLayoutUpsample(Upsample):
    """Interpolation, by products, whose result goes on in blocks."""

    def hybrid_forward(self, F, x, like):
        return to_blocked_layout(F, super().hybrid_forward(F, x, like), self.channels)


class FusedNormReLU(NormReLU):
    """Batch normalization and ReLU as one operator."""

    def hybrid_forward(self, F, x, gamma, beta, running_mean, running_var):
        statistics = running_mean, running_var
        return F.contrib.BatchNormWithReLU(x, gamma, beta, *statistics, name="fwd", **self._kwargs)


def fusible_normalizations(nodes, folding):
    """The normalizations that may become one operator with their ReLU.

    That operator remembers which values it cut off in the order in which its input lies in memory; it fails, or its
    gradient is wrong, where it then meets another layout. So its input must be sure to lie in blocks: it comes from a
    convolution, by way of operators that keep the layout.

    Parameters
    ----------
    nodes : list of dict
        As `graph` returns them.
    folding : bool
        Whether to leave out those that the backend makes parts of a convolution.

    Returns
    -------
    set of str
        Names of nodes.
    """
    readers = Counter(index for node in nodes for index, *_ in node["inputs"])
    blocked, fusible = [], set()
    for node in nodes:
        inputs = [blocked[index] for index, *_ in node["inputs"]]
        if node["op"] == "BatchNorm" and inputs[0]:
            source = node["inputs"][0][0]
            if not (folding and nodes[source]["op"] == "Convolution" and readers[source] == 1):
                fusible.add(node["name"])
        blocked.append(writes_blocks(node["op"], inputs))
    return fusible


def has_one_layout(convolution):
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


def graph(net, casts=False):
    """The nodes of a network's graph, a list of dict, in the order in which they run; without casts, or with them."""
    return json.loads(net(mx.sym.var("data")).tojson(remove_amp_cast=not casts))["nodes"]
