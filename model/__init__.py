"""Residual attention networks (arXiv 1704.06904) as Gluon HybridBlocks."""

import sys

from base.runtime import prepare_mxnet

if "mxnet" not in sys.modules:
    prepare_mxnet()  # python -m model.summary, or a user's own script, may begin with this package

from model.attention_net import (
    AttentionNet,
    AttentionNetCifar,
    attention_net_spec,
    get_attention_cifar,
    get_attention_net,
)
from model.resnet import ResNetCifar, get_resnet_cifar
from model.units import units

__all__ = [
    "AttentionNet",
    "AttentionNetCifar",
    "ResNetCifar",
    "attention_net_spec",
    "get_attention_cifar",
    "get_attention_net",
    "get_resnet_cifar",
    "units",
]
