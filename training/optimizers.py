"""Optimizers by name, and what of the flags each of them takes.

Another one is a line in `OPTIMIZERS`: MXNet's name of it, and its options as a function of the flags. Its state may be
any nesting of arrays: `training.state` saves them all. One that treats every number by itself may be named in
`training.flat_arrays.ELEMENTWISE`, and then updates many parameters at once.
"""

__all__ = ["OPTIMIZERS", "optimizer_options"]


def with_momentum(flags):
    return {"momentum": flags.momentum, "wd": flags.wd}


OPTIMIZERS = {
    "nag": with_momentum,  # Nesterov's
    "sgd": with_momentum,
}


def optimizer_options(flags):
    """(MXNet's name of the optimizer, its options) as the flags of `training.flags` say.

    With --float16, it updates a float32 copy of every parameter.
    """
    return flags.optimizer, {**OPTIMIZERS[flags.optimizer](flags), "multi_precision": flags.float16}
