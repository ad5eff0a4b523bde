"""Blocks of a network that are given other methods, with the same parameters under the same names."""

import mxnet as mx
from mxnet.gluon import nn

__all__ = ["descendants", "extend", "trace", "use_running_statistics"]


def extend(net, extensions, chosen=lambda block: True):
    """Put the methods of a subclass before those of every ``chosen`` block of a class, its subclasses' blocks too.

    Parameters
    ----------
    net : HybridBlock
    extensions : dict
        {class: subclass}.
    chosen : callable
        Takes a block; whether it is one of those.
    """
    for block in descendants(net):
        for kind, extension in extensions.items():
            if isinstance(block, kind) and chosen(block):
                block.__class__ = type(extension.__name__, (extension, type(block)), {})


def trace(net, hooks, dtype=None):
    """Build a network's graph once for symbols, for hooks that note its nodes; these are detached then.

    Returns the symbol of the images, "data".
    """
    data = mx.sym.var("data", dtype=dtype)
    try:
        net(data)
    finally:
        for hook in hooks:
            hook.detach()
    return data


def use_running_statistics(net):
    """Have all normalizations of a network, in training too, compute with the statistics that they have, and keep them.

    It must not have run yet.
    """
    for block in descendants(net):
        if isinstance(block, nn.BatchNorm):
            block._kwargs["use_global_stats"] = True


def descendants(block):
    """A block and all blocks within it, each after those within it."""
    found = []
    block.apply(found.append)
    return found
