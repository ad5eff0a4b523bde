"""Validation of saved parameters, without a training."""

import mxnet as mx

from base.errors import UserError
from training.commands import loader
from training.loop import place, precision, validate
from training.run.logger import Progress

__all__ = ["evaluate"]


def evaluate(net, params, dataset, sync, args):
    """Load a ``.params`` file into an uninitialized network, validate it and print the figures in one line.

    Raises UserError for a file that cannot be read or is another network's.
    """
    dtype, leads = precision(args), sync.rank == 0
    validation = loader(dataset, "test", sync, args, training=False)
    place(net, sync.devices, dtype, mx.init.Zero(), inference=True)
    try:
        open(params, "rb").close()  # MXNet's own message would name its source files
        net.load_parameters(params, ctx=sync.devices, cast_dtype=True)
    except OSError as error:
        raise UserError(f"cannot read --params {params}: {error.strerror}") from None
    except mx.base.MXNetError as error:  # all but the end of its last line is of MXNet's source files
        reason = str(error).rpartition(": ")[2]
        raise UserError(f"cannot read --params {params}: {reason}") from None
    except (AssertionError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"--params {params} are not of this network: {reason}") from None
    with Progress(validation.steps, "validation", args.log_interval, shown=leads) as progress:
        found = validate(net, validation, dtype, sync, progress)
    if leads:
        at = f"{params} at {dataset.size}x{dataset.size}"
        print(f"{at}: loss {found.loss:.4f}  top-1 {found.accuracy:.4f}  top-5 {found.top5:.4f}")
