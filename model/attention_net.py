"""Attention-56 to Attention-452, for 224x224 and for 32x32 input (arXiv 1704.06904, sections 3 and 4)."""

from collections import namedtuple

from mxnet.gluon import nn

from model.attention import PAPER, AttentionModule, attention_maps, unit_sequence
from model.staged_net import StagedNet
from model.units import NormReLU, PreActivationBottleneck

__all__ = [
    "AttentionNet",
    "AttentionNetCifar",
    "AttentionSpec",
    "attention_net_spec",
    "get_attention_cifar",
    "get_attention_net",
]

AttentionSpec = namedtuple("AttentionSpec", ["ptr", "modules"])

# Depth: [p, t, r] of every attention module, and how many modules stages 1, 2 and 3 have.
attention_net_spec = {
    56: AttentionSpec(ptr=[1, 2, 1], modules=[1, 1, 1]),
    92: AttentionSpec(ptr=[1, 2, 1], modules=[1, 2, 3]),
    128: AttentionSpec(ptr=[1, 2, 1], modules=[3, 3, 3]),
    164: AttentionSpec(ptr=[1, 2, 1], modules=[4, 4, 4]),
    236: AttentionSpec(ptr=[1, 2, 1], modules=[6, 6, 6]),
    452: AttentionSpec(ptr=[2, 4, 3], modules=[6, 6, 6]),
}


class AttentionNet(StagedNet):
    """Residual attention network for 224x224 input (table 2 of the paper).

    A stem that divides the size by 4; three stages of a residual unit and attention modules, 256, 512 and 1024
    channels; three residual units of 2048; BN and ReLU, unless the units' output has passed them already; global
    average pooling and a fully connected layer. Every stage but the first halves height and width.

    Parameters
    ----------
    classes : int
        Number of classes.
    ptr : sequence of 3 int
        p, t and r of every attention module.
    modules : sequence of int
        Attention modules in each stage.
    unit : type
        Residual unit class, one of `model.units.units`.
    variant : model.attention.AttentionVariant

    Shapes: (N, 3, H, W) -> (N, classes). H and W are any multiples of 32 from 64 to 8192; 224 in the paper.
    """

    size_step, smallest_size = 32, 64
    stem_channels = 64
    channels = (256, 512, 1024, 2048)

    def __init__(self, classes, ptr, modules, unit=PreActivationBottleneck, variant=PAPER, **kwargs):
        super().__init__(**kwargs)
        with self.name_scope():
            self.features = nn.HybridSequential()
            self.features.add(self.stem())
            in_channels = self.stem_channels
            for stage, (count, channels) in enumerate(zip(modules, self.channels)):
                self.features.add(unit(channels, in_channels, stride=1 if stage == 0 else 2))
                levels = len(modules) - stage  # every mask comes down to the smallest map of the last one
                for _ in range(count):
                    self.features.add(AttentionModule(levels, channels, ptr, unit, variant))
                in_channels = channels
            self.stages_end = len(self.features)
            channels = self.channels[-1]
            self.features.add(unit(channels, in_channels, stride=2), unit_sequence(2, channels, unit))
            if not unit.activated:
                self.features.add(NormReLU(channels))
            self.features.add(nn.GlobalAvgPool2D(), nn.Flatten())
            self.output = nn.Dense(classes, in_units=channels)

    def stem(self):
        """7x7 convolution of stride 2, BN, ReLU, 3x3 max pooling of stride 2: (N, 3, H, W) -> (N, 64, H/4, W/4)."""
        block = nn.HybridSequential()
        block.add(
            nn.Conv2D(self.stem_channels, 7, 2, 3, use_bias=False, in_channels=3),
            NormReLU(self.stem_channels),
            nn.MaxPool2D(3, 2, ceil_mode=True),
        )
        return block

    def attention_masks(self, x):
        """What every attention module attends to in a batch of images: its soft mask, and the features around it.

        Parameters
        ----------
        x : NDArray
            Normalized images (N, 3, H, W), on one of the network's devices.

        Returns
        -------
        dict
            {"stage 1, module 1": model.attention.AttentionMaps, ...}, in the order in which an image passes them. Each
            has the arrays ``trunk``, ``mask`` and ``output``, (N, channels, H', W').
        """
        modules = {}
        for stage, channels in enumerate(self.channels, start=1):
            alike = [
                block for block in self.features if isinstance(block, AttentionModule) and block.channels == channels
            ]
            modules.update((f"stage {stage}, module {number}", block) for number, block in enumerate(alike, start=1))
        return dict(zip(modules, attention_maps(self, list(modules.values()), x)))


class AttentionNetCifar(AttentionNet):
    """Residual attention network for 32x32 input: the same with half the channels and a stem that keeps the size.

    Parameters are those of `AttentionNet`. Shapes: (N, 3, H, W) -> (N, classes). H and W are any multiples of 8
    from 16 to 8192; 32 in the paper.
    """

    size_step, smallest_size = 8, 16
    stem_channels = 32
    channels = (128, 256, 512, 1024)

    def stem(self):
        """3x3 convolution, BN, ReLU: (N, 3, H, W) -> (N, 32, H, W)."""
        block = nn.HybridSequential()
        block.add(nn.Conv2D(self.stem_channels, 3, 1, 1, use_bias=False, in_channels=3), NormReLU(self.stem_channels))
        return block


def get_attention_net(classes, num_layers, **kwargs):
    """An uninitialized `AttentionNet` of ``num_layers`` (a key of `attention_net_spec`; ValueError for others).

    ``modules`` may name other numbers of attention modules than the spec's; ``kwargs`` go to the class.
    Shapes: (N, 3, 224, 224) -> (N, classes).
    """
    return _from_spec(AttentionNet, classes, num_layers, **kwargs)


def get_attention_cifar(classes, num_layers, **kwargs):
    """An uninitialized `AttentionNetCifar` of ``num_layers`` (a key of `attention_net_spec`; ValueError for others).

    The paper's networks for CIFAR have m modules in each stage and 36 m + 20 layers (section 4.1), so that its
    Attention-92 has [2, 2, 2]; the spec, as that of the implementation whose results are reproduced, has ImageNet's
    [1, 2, 3]. ``modules`` may name others; ``kwargs`` go to the class. Shapes: (N, 3, 32, 32) -> (N, classes).
    """
    return _from_spec(AttentionNetCifar, classes, num_layers, **kwargs)


def _from_spec(network, classes, num_layers, modules=None, **kwargs):
    if num_layers not in attention_net_spec:
        depths = ", ".join(map(str, attention_net_spec))
        raise ValueError(f"no Attention-{num_layers}: num_layers is one of {depths}")
    spec = attention_net_spec[num_layers]
    return network(classes, spec.ptr, modules or spec.modules, **kwargs)
