"""Attention module: a trunk branch weighed by a soft mask branch (arXiv 1704.06904, section 3).

What the paper compares in its tables has a name here: in `attentions`, `learnings` and `masks`. Another variant is a
function or a class, and a line in one of these.
"""

from collections import namedtuple

import mxnet as mx
from mxnet.gluon import SymbolBlock, nn

from model.extension import trace
from model.units import NormReLU
from model.upsample import Upsample

__all__ = [
    "PAPER",
    "AttentionMaps",
    "AttentionModule",
    "AttentionVariant",
    "Hourglass",
    "LocalMask",
    "SoftMask",
    "attention_maps",
    "attentions",
    "learnings",
    "masks",
    "mixed_attention",
    "unit_sequence",
]

AttentionMaps = namedtuple("AttentionMaps", ["trunk", "mask", "output"])
AttentionMaps.__doc__ = """What an attention module computes of a batch (figure 1), NDArrays of (N, channels, H, W).

trunk : the features before the mask, T(x).
mask : the soft mask, M(x).
output : the features after it, as `AttentionModule.combine` makes them of both.
"""

AttentionVariant = namedtuple(
    "AttentionVariant", ["attention", "learning", "mask"], defaults=["mixed", "residual", "hourglass"]
)
AttentionVariant.__doc__ = """How attention modules attend; the defaults are the paper's network.

attention : str
    A key of `attentions`: what makes a mask of the mask branch's last map.
learning : str
    A key of `learnings`: how mask and trunk are joined.
mask : str
    A key of `masks`: what the mask branch is.
"""

PAPER = AttentionVariant()


def mixed_attention(F, x):
    """f1 of section 3.3: a sigmoid for each channel and position."""
    return F.Activation(x, act_type="sigmoid")


def _eighth(x):
    """What is then normalized: in float16 sums of its squares would pass the largest number; float32 keeps its bits.

    Float16's squares of numbers below 0.002 are 0 then.
    """
    return x / 8


def channel_attention(F, x):
    """f2: L2 normalization over the channels at each position, which takes the spatial information away."""
    return F.L2Normalization(_eighth(x), eps=1e-10 / 8**2, mode="channel")


def spatial_attention(F, x):
    """f3: normalization over the positions in each channel, and a sigmoid."""
    x = _eighth(x)
    centred = F.broadcast_sub(x, x.mean(axis=(2, 3), keepdims=True))
    variance = F.square(centred).mean(axis=(2, 3), keepdims=True)
    return F.sigmoid(F.broadcast_div(centred, F.sqrt(variance + 1e-5 / 8**2)))


attentions = {"mixed": mixed_attention, "channel": channel_attention, "spatial": spatial_attention}


def residual_learning(mask, trunk):
    """Attention residual learning, ``(1 + M) * T`` (equation 3)."""
    return (1 + mask) * trunk


def naive_learning(mask, trunk):
    """Naive attention learning, ``M * T`` (equation 1; table 3)."""
    return mask * trunk


learnings = {"residual": residual_learning, "naive": naive_learning}


class Hourglass(nn.HybridBlock):
    """Bottom-up, top-down part of the mask branch, defined by itself one level deeper.

    A level is: 3x3 max pooling of stride 2; ``r`` units; the inner level, if any, beside a skip unit; ``r`` units;
    up-sampling to the size of the level's input (section 3.2, figure 2).

    Parameters
    ----------
    levels : int
        How often the map is halved: 3, 2 and 1 in stages 1, 2 and 3.
    channels : int
        Channels, in and out.
    r : int
        Residual units after each pooling and before each up-sampling.
    unit : type
        Residual unit class.

    Shapes: (N, channels, H, W) -> (N, channels, H, W).
    """

    samples = True  # down and up

    def __init__(self, levels, channels, r, unit, **kwargs):
        super().__init__(**kwargs)
        with self.name_scope():
            if self.samples:
                # As in the authors' network, windows start at the first pixel and the last may hang over the edge.
                self.pool = nn.MaxPool2D(3, 2, ceil_mode=True)
            self.down = unit_sequence(r, channels, unit)
            self.skip = self.inner = None
            if levels > 1:
                self.skip = unit(channels, channels)
                self.inner = type(self)(levels - 1, channels, r, unit)
            self.up = unit_sequence(r, channels, unit)
            if self.samples:
                self.upsample = Upsample(channels, separable=levels > 2)

    def hybrid_forward(self, F, x):
        y = self.down(self.pool(x) if self.samples else x)
        if self.inner is not None:
            y = self.skip(y) + self.inner(y)
        y = self.up(y)
        return self.upsample(y, x) if self.samples else y


class LocalMask(Hourglass):
    """The units of an hourglass without its sampling: local convolutions, with as many parameters (table 4)."""

    samples = False


masks = {"hourglass": Hourglass, "local": LocalMask, "none": None}


class SoftMask(nn.HybridBlock):
    """Soft mask branch: the hourglass, then BN, ReLU, 1x1 convolution, twice, and a sigmoid (figure 2).

    The variant may put something else in the place of the hourglass and of the sigmoid.

    Where the units' output is activated already, as in AttentionNeXt, the first BN and ReLU are left out. Parameters
    are those of `Hourglass` and an `AttentionVariant`. Shapes: (N, channels, H, W) -> (N, channels, H, W), values in
    (0, 1) but for channel attention's, in [-1, 1].
    """

    def __init__(self, levels, channels, r, unit, variant=PAPER, **kwargs):
        super().__init__(**kwargs)
        self.attention = attentions[variant.attention]
        with self.name_scope():
            self.hourglass = masks[variant.mask](levels, channels, r, unit)
            self.head = nn.HybridSequential()
            for activated in (unit.activated, False):
                if not activated:
                    self.head.add(NormReLU(channels))
                self.head.add(nn.Conv2D(channels, 1, use_bias=False, in_channels=channels))

    def hybrid_forward(self, F, x):
        return self.attention(F, self.logits(x))

    def logits(self, x):
        """What the attention function makes a mask of: (N, channels, H, W) -> (N, channels, H, W)."""
        return self.head(self.hourglass(x))


class AttentionModule(nn.HybridBlock):
    """``p`` units, then ``(1 + M(x)) * T(x)`` with a trunk T of ``t`` units, then ``p`` units (section 3).

    Parameters
    ----------
    levels : int
        Depth of the mask's hourglass.
    channels : int
        Channels, in and out.
    ptr : sequence of 3 int
        Units before and after the split, in the trunk, and between two samplings of the mask.
    unit : type
        Residual unit class.
    variant : AttentionVariant
        Without a mask, a module is the units before, of the trunk and after: a residual network's.

    Attributes
    ----------
    channels : int

    Shapes: (N, channels, H, W) -> (N, channels, H, W).
    """

    def __init__(self, levels, channels, ptr, unit, variant=PAPER, **kwargs):
        super().__init__(**kwargs)
        p, t, r = ptr
        self.channels = channels
        self.learning = learnings[variant.learning]
        with self.name_scope():
            self.before = unit_sequence(p, channels, unit)
            self.trunk = unit_sequence(t, channels, unit)
            self.mask = None
            if masks[variant.mask] is not None:
                self.mask = SoftMask(levels, channels, r, unit, variant)
            self.after = unit_sequence(p, channels, unit)

    def hybrid_forward(self, F, x):
        x = self.before(x)
        if self.mask is None:
            return self.after(self.trunk(x))
        return self.after(self.combine(F, self.mask(x), self.trunk(x)))

    def combine(self, F, mask, trunk):
        """Mask and trunk as one map, as `learnings` says. Shapes: both (N, channels, H, W) -> (N, channels, H, W)."""
        return self.learning(mask, trunk)


def attention_maps(net, modules, x):
    """The `AttentionMaps` of some attention modules of a network, for images x, in the order of ``modules``.

    They are nodes of the network's own graph, whichever form it was given, and use its parameters where these are.

    Parameters
    ----------
    net : HybridBlock
        Initialized.
    modules : list of AttentionModule
    x : NDArray
        (N, C, H, W), on one of the network's devices.
    """
    seen = {}  # (module's place, name of the map): its node
    handles = []
    for place, module in enumerate(modules):

        def note(name, value, place=place):
            seen[place, name] = value

        handles += [
            module.trunk.register_forward_hook(lambda block, inputs, output, note=note: note("trunk", output)),
            module.mask.register_forward_hook(lambda block, inputs, output, note=note: note("mask", output)),
            module.after.register_forward_pre_hook(lambda block, inputs, note=note: note("output", inputs[0])),
        ]
    data = trace(net, handles, x.dtype)
    nodes = [seen[place, name] for place in range(len(modules)) for name in AttentionMaps._fields]
    maps = SymbolBlock(nodes, data, params=net.collect_params())(x)
    # bfloat16, which numpy does not know, is none of the types that a network's images have
    maps = [m if m.dtype == x.dtype else mx.nd.amp_cast(m, dtype=x.dtype) for m in maps]
    count = len(AttentionMaps._fields)
    return [AttentionMaps(*maps[first : first + count]) for first in range(0, len(maps), count)]


def unit_sequence(count, channels, unit):
    """``count`` residual units, one after the other, that keep channels and size."""
    block = nn.HybridSequential()
    block.add(*[unit(channels, channels) for _ in range(count)])
    return block
