"""Which devices a training runs on."""

import mxnet as mx

from training.errors import UserError

__all__ = ["contexts"]


def contexts(num_gpus, first=0):
    """``num_gpus`` GPUs from number ``first`` on, or the CPU for 0, as a list of MXNet contexts.

    Raises UserError where the machine has fewer.
    """
    if num_gpus == 0:
        return [mx.cpu()]
    try:
        present = mx.context.num_gpus()
    except mx.base.MXNetError:  # a driver that answers with an error
        present = 0
    if present < first + num_gpus:
        which = f" from number {first} on" if first else ""
        raise UserError(f"--num-gpus {num_gpus}{which}: MXNet sees {present} here; --num-gpus 0 trains on the CPU")
    return [mx.gpu(index) for index in range(first, first + num_gpus)]
