"""Residual units: the blocks every stage, trunk and mask branch is made of.

A unit takes NCHW feature maps and keeps the number of axes; it may change channels and, by its stride,
height and width. Units are interchangeable: each is built as ``Unit(channels, in_channels, stride)``.
"""

from mxnet.gluon import nn

__all__ = ["NormReLU", "PreActivationBottleneck"]


class NormReLU(nn.BatchNorm):
    """Batch normalization and ReLU, the pair that precedes every convolution of the pre-activation form.

    The networks' published descriptions leave epsilon and momentum to the framework; these are Gluon's defaults.
    `model.fusion.fuse` makes the two one operator where the device has one.

    Shapes: (N, in_channels, H, W) -> (N, in_channels, H, W).
    """

    def __init__(self, in_channels, **kwargs):
        super().__init__(in_channels=in_channels, **kwargs)

    def hybrid_forward(self, F, x, gamma, beta, running_mean, running_var):
        normalized = super().hybrid_forward(F, x, gamma, beta, running_mean, running_var)
        return normalized if self.fuse_relu else F.Activation(normalized, act_type="relu")


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
