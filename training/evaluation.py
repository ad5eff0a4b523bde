"""Validation of saved parameters, without a training."""

import mxnet as mx

from training.board import Progress
from training.errors import UserError
from training.loop import place, validate

__all__ = ["evaluate"]


def evaluate(net, params, validation, contexts, args):
    """Load a ``.params`` file into an uninitialized network and validate it. Returns the figures in one line.

    Raises UserError for a file that cannot be read or is another network's.
    """
    dtype = "float16" if args.float16 else "float32"
    place(net, contexts, dtype, mx.init.Zero())
    try:
        open(params, "rb").close()  # MXNet's own message would name its source files
        net.load_parameters(params, ctx=contexts, cast_dtype=True)
    except OSError as error:
        raise UserError(f"cannot read --params {params}: {error.strerror}") from None
    except (mx.base.MXNetError, AssertionError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"--params {params} are not of this network: {reason}") from None
    with Progress(validation.steps, "validation", args.log_interval) as progress:
        loss, accuracy, top5 = validate(net, validation, dtype, progress)
    size = validation.dataset.size
    return f"{params} at {size}x{size}: loss {loss:.4f}  top-1 {accuracy:.4f}  top-5 {top5:.4f}"
