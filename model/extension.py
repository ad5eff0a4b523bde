"""Blocks of a network that are given other methods, with the same parameters under the same names."""

__all__ = ["descendants", "extend"]


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


def descendants(block):
    """A block and all blocks within it, each after those within it."""
    found = []
    block.apply(found.append)
    return found
