"""Residual networks without attention for 32x32 input: the baseline of the paper's comparison (section 4.1)."""

from mxnet.gluon import nn

from model.attention import unit_sequence
from model.staged_net import StagedNet
from model.units import NormReLU, PreActivationBottleneck

__all__ = ["ResNetCifar", "get_resnet_cifar"]


class ResNetCifar(StagedNet):
    """Pre-activation residual network for 32x32 input (He et al., arXiv 1603.05027, appendix).

    A 3x3 convolution to 16 channels; three stages of bottleneck units of 64, 128 and 256 channels, of which the second
    and the third halve height and width; BN and ReLU, global average pooling and a fully connected layer.

    Parameters
    ----------
    classes : int
        Number of classes.
    count : int
        Units in each stage: 18 for ResNet-164.

    Shapes: (N, 3, H, W) -> (N, classes). H and W are any multiples of 4 from 16 to 8192; 32 in the paper.
    """

    size_step, smallest_size = 4, 16
    depths = range(11, 2000, 9)
    stem_channels = 16
    channels = (64, 128, 256)

    def __init__(self, classes, count, **kwargs):
        super().__init__(**kwargs)
        unit = PreActivationBottleneck
        with self.name_scope():
            self.features = nn.HybridSequential()
            self.features.add(nn.Conv2D(self.stem_channels, 3, 1, 1, use_bias=False, in_channels=3))
            in_channels = self.stem_channels
            for stage, channels in enumerate(self.channels):
                self.features.add(unit(channels, in_channels, stride=1 if stage == 0 else 2))
                self.features.add(unit_sequence(count - 1, channels, unit))
                in_channels = channels
            self.stages_end = len(self.features)
            self.features.add(NormReLU(in_channels), nn.GlobalAvgPool2D(), nn.Flatten())
            self.output = nn.Dense(classes, in_units=in_channels)


def get_resnet_cifar(classes, num_layers):
    """An uninitialized `ResNetCifar` of ``num_layers``: 9 n + 2 for n units a stage, such as 164; else ValueError.

    Shapes: (N, 3, 32, 32) -> (N, classes).
    """
    if num_layers not in ResNetCifar.depths:
        raise ValueError(f"no ResNet-{num_layers} of bottleneck units: it has 9 n + 2 layers, such as 164")
    return ResNetCifar(classes, (num_layers - 2) // 9)
