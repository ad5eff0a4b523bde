"""Networks that compute in bfloat16 on a CPU. No other file of the networks knows of it.

Parameters stay as they are, in float32; each convolution rounds its weights when it runs, so that their gradients
arrive in float32. The maps between convolutions are bfloat16: normalization, whose statistics stay float32, ReLU, sums
and pooling take them. What does not take them, or would lose by it, is an island of float32: a class of this file whose
name begins with Float32. There are few, because each way in or out is a pass over memory.
"""

import numpy as np
from mxnet import autograd
from mxnet.gluon import HybridBlock, nn

from base.runtime import uses_amx
from model.attention import AttentionModule, SoftMask
from model.extension import descendants, extend, use_running_statistics
from model.units import SqueezeExcitation
from model.upsample import Upsample

__all__ = ["compute_in_bfloat16", "outside_squeeze_excitation", "works_in_blocks"]

BFLOAT16 = np.dtype([("bfloat16", np.uint16)])  # as MXNet names it; numpy has no such type
BLOCK = 16  # channels: what oneDNN's convolutions in bfloat16 work by


def compute_in_bfloat16(net, inference):
    """Have a network, which has not run, compute in bfloat16. It takes images and returns logits in float32.

    Parameters
    ----------
    net : HybridBlock
    inference : bool
        Whether it only classifies.
    """
    blocks = outside_squeeze_excitation(net)
    first, *others = (block for block in blocks if isinstance(block, nn.Conv2D))
    islands = {
        Upsample: Float32Upsample,
        SoftMask: Float32SoftMask,
        AttentionModule: Float32Product,
        SqueezeExcitation: Float32SqueezeExcitation,
        nn.GlobalAvgPool2D: Float32Pooling,
    }
    extend(net, islands, lambda block: block in blocks)
    extend(net, {nn.Conv2D: Float32Stem}, lambda block: block is first)
    extend(net, {nn.Conv2D: Float32Convolution}, lambda block: block in others and not works_in_blocks(block))
    extend(net, {nn.Conv2D: Bfloat16Convolution}, lambda block: block in others and works_in_blocks(block))
    if inference and not uses_amx():
        extend(net, {HybridBlock: ByTrainingKernels}, lambda block: block is net)
        use_running_statistics(net)


def outside_squeeze_excitation(net):
    """All blocks of a network but those within squeeze-and-excitation, whose convolutions are of single positions."""
    inside = set()
    for block in descendants(net):
        if isinstance(block, SqueezeExcitation):
            inside.update(descendants(block.gate))
    return [block for block in descendants(net) if block not in inside]


def works_in_blocks(convolution):
    """Whether a Conv2D has whole blocks of channels, for which oneDNN has fast kernels, and in bfloat16 any at all."""
    channels = convolution._in_channels, convolution._channels
    return convolution._kwargs["num_group"] == 1 and all(count % BLOCK == 0 for count in channels)


def rounded(F, x):
    """The same in bfloat16, which is always written in MXNet's plain layout."""
    return F.amp_cast(x, dtype=BFLOAT16)


def enter(F, x, channels):
    """A float32 map (N, channels, H, W) as a bfloat16 one in oneDNN's layout, and its gradient the other way."""
    return in_blocks(F, rounded(F, x), channels)


def leave(F, x, channels):
    """A bfloat16 map (N, channels, H, W) as a float32 one in the plain layout, and its gradient the other way.

    The gradient would come back in the plain layout, and be converted by each operator that reads it, or have a sum
    with another gradient computed in float32.
    """
    return F.amp_cast(in_blocks(F, x, channels), dtype="float32")


def in_blocks(F, x, channels):
    """A bfloat16 map, or the gradient by it, in the layout of oneDNN's convolutions, by a convolution that copies."""
    if uses_amx():  # whose kernels have another layout than those of a convolution with each channel by itself
        weight, groups = F.eye(channels).reshape((channels, channels, 1, 1)), 1
    else:
        weight, groups = F.ones((channels, 1, 1, 1)), channels
    return F.Convolution(x, rounded(F, weight), kernel=(1, 1), num_filter=channels, num_group=groups, no_bias=True)


class ByTrainingKernels(HybridBlock):
    """A network that classifies by the convolutions of training, which are a third faster with AVX512-BF16.

    oneDNN 2.4 has other ones for inference, which work on channels-last maps. Normalization is told apart from
    training's, by statistics of the batch, and the network has nothing else that is different in training.
    """

    def __call__(self, *args):
        with autograd.train_mode():
            return super().__call__(*args)


class Bfloat16Convolution(nn.Conv2D):
    """A convolution of bfloat16 maps by weights that are float32 when they are updated."""

    def hybrid_forward(self, F, x, weight, bias=None):
        return super().hybrid_forward(F, x, rounded(F, weight), None if bias is None else rounded(F, bias))


class Float32Convolution(nn.Conv2D):
    """A convolution that oneDNN would not compute in bfloat16, or slowly: one in groups, or of a few channels."""

    def hybrid_forward(self, F, x, weight, bias=None):
        y = super().hybrid_forward(F, leave(F, x, self._in_channels), weight, bias)
        return enter(F, y, self._channels)


class Float32Stem(nn.Conv2D):
    """The convolution that reads the images: of three channels, for which oneDNN has no fast kernel in bfloat16."""

    def hybrid_forward(self, F, x, weight, bias=None):
        return enter(F, super().hybrid_forward(F, x, weight, bias), self._channels)


class Float32Upsample(Upsample):
    """Interpolation by products, which MXNet has not in bfloat16; the smaller map is the one that crosses."""

    def hybrid_forward(self, F, x, like):
        one = F.slice(like, begin=(0, 0, 0, 0), end=(1, None, None, None))  # only its size counts
        y = super().hybrid_forward(F, leave(F, x, self.channels), F.amp_cast(one, dtype="float32"))
        return enter(F, y, self.channels)


class Float32SoftMask(SoftMask):
    """A mask in float32, for the product with it; not each attention function could be computed in bfloat16."""

    def hybrid_forward(self, F, x):
        return self.attention(F, leave(F, self.logits(x), self.head[-1]._channels))


class Float32Product(AttentionModule):
    """An attention module whose product of mask and trunk is computed in float32."""

    def combine(self, F, mask, trunk):
        return enter(F, super().combine(F, mask, leave(F, trunk, self.channels)), self.channels)


class Float32SqueezeExcitation(SqueezeExcitation):
    """Squeeze-and-excitation in float32: a product, and convolutions of one position."""

    def hybrid_forward(self, F, x):
        channels = self.gate[-1]._channels
        return enter(F, super().hybrid_forward(F, leave(F, x, channels)), channels)


class Float32Pooling(nn.GlobalAvgPool2D):
    """The pooling at the end, whose sums are float32, and by it the classifier and the loss."""

    def hybrid_forward(self, F, x):
        return super().hybrid_forward(F, F.amp_cast(x, dtype="float32"))
