"""Residual units: the blocks every stage, trunk and mask branch is made of.

A unit takes NCHW feature maps and keeps the number of axes; it may change channels and, by its stride,
height and width. Units are interchangeable: each is built as ``Unit(channels, in_channels, stride)`` and says

network : str
    What a network of these units is called.
activated : bool
    Whether its output is normalized and rectified already, so that what follows need not do it.
last_scale : mxnet.gluon.Parameter
    What its residual branch ends in a product with: where that starts at zero, the unit starts as its shortcut.

`units` has them by name; another one is another class and a line there.
"""

from mxnet import init
from mxnet.gluon import contrib, nn

__all__ = [
    "InceptionUnit",
    "NormReLU",
    "PreActivationBottleneck",
    "ResNeXtUnit",
    "SqueezeExcitation",
    "SqueezeExcitationUnit",
    "start_as_shortcuts",
    "units",
]


class NormReLU(nn.BatchNorm):
    """Batch normalization and ReLU, the pair that precedes every convolution of the pre-activation form.

    The networks' published descriptions leave epsilon and momentum to the framework; these are Gluon's defaults.

    Shapes: (N, in_channels, H, W) -> (N, in_channels, H, W).
    """

    def __init__(self, in_channels, **kwargs):
        super().__init__(in_channels=in_channels, **kwargs)

    def hybrid_forward(self, F, x, gamma, beta, running_mean, running_var):
        normalized = super().hybrid_forward(F, x, gamma, beta, running_mean, running_var)
        return F.Activation(normalized, act_type="relu")


class PreActivationBottleneck(nn.HybridBlock):
    """Pre-activation bottleneck residual unit (He et al., arXiv 1603.05027), the unit of Attention-56 to 452.

    BN, ReLU, 1x1 to ``channels / 4``; BN, ReLU, 3x3 with the stride; BN, ReLU, 1x1 to ``channels``; plus the
    shortcut. Where channels or stride change, the shortcut is a 1x1 convolution of the normalized, rectified
    input, as in the authors' published network descriptions; elsewhere it is the input itself.

    Parameters
    ----------
    channels : int
        Output channels, a multiple of 4.
    in_channels : int
        Input channels.
    stride : int
        Of the 3x3 convolution and the shortcut.

    Shapes: (N, in_channels, H, W) -> (N, channels, ceil(H / stride), ceil(W / stride)).
    """

    network = "attention"
    activated = False

    def __init__(self, channels, in_channels, stride=1, **kwargs):
        super().__init__(**kwargs)
        width = channels // 4
        with self.name_scope():
            self.pre_activation = NormReLU(in_channels)
            self.branch = nn.HybridSequential()
            self.branch.add(
                nn.Conv2D(width, 1, use_bias=False, in_channels=in_channels),
                NormReLU(width),
                nn.Conv2D(width, 3, stride, 1, use_bias=False, in_channels=width),
                NormReLU(width),
                nn.Conv2D(channels, 1, use_bias=False, in_channels=width),
            )
            self.projection = None
            if channels != in_channels or stride != 1:
                self.projection = nn.Conv2D(channels, 1, stride, use_bias=False, in_channels=in_channels)

    def hybrid_forward(self, F, x):
        activated = self.pre_activation(x)
        shortcut = x if self.projection is None else self.projection(activated)
        return self.branch(activated) + shortcut

    @property
    def last_scale(self):
        # Not the last gamma: behind it stands a ReLU, and no gradient passes that where all its input is zero.
        return self.branch[-1].weight


class PostActivationUnit(nn.HybridBlock):
    """What units with ReLU after the sum have in common (He et al., arXiv 1512.03385).

    ``relu(branch(x) + shortcut(x))``. The branch ends in a 1x1 convolution to ``channels`` and BN. Where channels or
    stride change, the shortcut is a 1x1 convolution and BN; elsewhere it is the input itself.

    A subclass defines ``inner(channels, in_channels, stride)``, the rest of the branch, which ends in a ReLU: a block,
    and how many channels come out of it. Parameters and shapes are those of `PreActivationBottleneck`.
    """

    activated = True

    def __init__(self, channels, in_channels, stride=1, **kwargs):
        super().__init__(**kwargs)
        with self.name_scope():
            inner, width = self.inner(channels, in_channels, stride)
            self.branch = in_sequence(
                inner,
                nn.Conv2D(channels, 1, use_bias=False, in_channels=width),
                nn.BatchNorm(in_channels=channels),
            )
            self.projection = None
            if channels != in_channels or stride != 1:
                self.projection = in_sequence(
                    nn.Conv2D(channels, 1, stride, use_bias=False, in_channels=in_channels),
                    nn.BatchNorm(in_channels=channels),
                )

    @property
    def last_scale(self):
        return self.branch[2].gamma

    def hybrid_forward(self, F, x):
        shortcut = x if self.projection is None else self.projection(x)
        return F.Activation(self.branch(x) + shortcut, act_type="relu")


def in_sequence(*blocks):
    """Blocks one after the other."""
    sequence = nn.HybridSequential()
    sequence.add(*blocks)
    return sequence


def conv_norm_relu(channels, in_channels, kernel=1, stride=1, groups=1):
    """A convolution that keeps the size but for its stride, BN and ReLU."""
    return in_sequence(
        nn.Conv2D(channels, kernel, stride, kernel // 2, groups=groups, use_bias=False, in_channels=in_channels),
        NormReLU(channels),
    )


class ResNeXtUnit(PostActivationUnit):
    """The unit of AttentionNeXt-56 and 92: a bottleneck with 32 groups (Xie et al., arXiv 1611.05431).

    1x1 to ``channels / 2``, BN, ReLU; 3x3 in 32 groups with the stride, BN, ReLU; 1x1 to ``channels``, BN; as in the
    authors' published network descriptions. ``channels`` is a multiple of 64.
    """

    network = "attentionnext"

    def inner(self, channels, in_channels, stride):
        width = channels // 2
        reduced = conv_norm_relu(width, in_channels)
        return in_sequence(reduced, conv_norm_relu(width, width, 3, stride, groups=32)), width


class SqueezeExcitation(nn.HybridBlock):
    """Channels weighed by what all positions together say (Hu et al., arXiv 1709.01507).

    Global average pooling; 1x1 to a sixteenth of the channels, ReLU; 1x1 back, sigmoid; times the input.

    Shapes: (N, channels, H, W) -> (N, channels, H, W).
    """

    reduction = 16

    def __init__(self, channels, **kwargs):
        super().__init__(**kwargs)
        squeezed = channels // self.reduction
        with self.name_scope():
            self.gate = in_sequence(
                nn.GlobalAvgPool2D(),
                nn.Conv2D(squeezed, 1, activation="relu", in_channels=channels),
                nn.Conv2D(channels, 1, activation="sigmoid", in_channels=squeezed),
            )

    def hybrid_forward(self, F, x):
        return F.broadcast_mul(x, self.gate(x))


class SqueezeExcitationUnit(ResNeXtUnit):
    """The ResNeXt unit with squeeze-and-excitation at the end of its branch. No published Attention network has it."""

    network = "attentionsenext"

    def __init__(self, channels, in_channels, stride=1, **kwargs):
        super().__init__(channels, in_channels, stride, **kwargs)
        with self.name_scope():
            self.branch.add(SqueezeExcitation(channels))


class InceptionUnit(PostActivationUnit):
    """A residual Inception unit, after Inception-ResNet-A (Szegedy et al., arXiv 1602.07261).

    Three ways side by side, of ``channels`` / 4, 8 and 16: 1x1; 1x1 and 3x3; 1x1 and two 3x3; BN and ReLU after each
    convolution. The widths give AttentionInception-56 about the published size. The authors have not published their
    unit; unlike Inception-ResNet this one is the same in all stages, without 7x1 or 3x1 convolutions, without scaling
    of the branch, and inside the stem and classifier of Attention-56. ``channels`` is a multiple of 16.
    """

    network = "attentioninception"

    def inner(self, channels, in_channels, stride):
        wide, middle, narrow = channels // 4, channels // 8, channels // 16
        ways = contrib.nn.HybridConcurrent(axis=1)
        ways.add(
            conv_norm_relu(wide, in_channels, 1, stride),
            in_sequence(conv_norm_relu(middle, in_channels), conv_norm_relu(middle, middle, 3, stride)),
            in_sequence(
                conv_norm_relu(narrow, in_channels),
                conv_norm_relu(narrow, narrow, 3),
                conv_norm_relu(narrow, narrow, 3, stride),
            ),
        )
        return ways, wide + middle + narrow


units = {
    "bottleneck": PreActivationBottleneck,
    "resnext": ResNeXtUnit,
    "inception": InceptionUnit,
    "se": SqueezeExcitationUnit,
}


def start_as_shortcuts(net):
    """Let the branch of every unit in an uninitialized network start at zero (arXiv 1812.01187, section 3.1)."""

    def start_at_zero(block):
        if isinstance(block, tuple(units.values())):
            block.last_scale.init = init.Zero()

    net.apply(start_at_zero)
