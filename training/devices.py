"""Which devices a training runs on."""

import mxnet as mx

from training.errors import UserError

__all__ = ["contexts"]


def contexts(num_gpus):
    """The first ``num_gpus`` GPUs, or the CPU for 0, as a list of MXNet contexts.

    Raises UserError where the machine has fewer.
    """
    if num_gpus == 0:
        return [mx.cpu()]
    try:
        present = mx.context.num_gpus()
    except mx.base.MXNetError:  # a driver that answers with an error
        present = 0
    if present < num_gpus:
        raise UserError(f"--num-gpus {num_gpus}: MXNet sees {present} here; --num-gpus 0 trains on the CPU")
    return [mx.gpu(index) for index in range(num_gpus)]
