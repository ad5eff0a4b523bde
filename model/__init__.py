"""Residual attention networks (arXiv 1704.06904) as Gluon HybridBlocks."""

import sys

from base.errors import UserError, report
from base.runtime import prepare_mxnet

if "mxnet" not in sys.modules:
    try:
        prepare_mxnet()  # python -m model.summary, or a user's own script, may begin with this package
    except UserError as error:
        if sys.argv[0] != "-m":
            raise
        sys.exit(report(error))  # for python -m model.summary, whose own code has not begun

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
