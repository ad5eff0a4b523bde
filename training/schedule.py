"""Learning rate as a function of the step: linear warm-up, then one of the curves.

Another curve is a function and a line in `CURVES`.
"""

from collections import namedtuple

from gluoncv.utils import LRScheduler, LRSequential

__all__ = ["CURVES", "Falls", "learning_rates"]

WARMUP_START = 0.01  # of the full rate

Falls = namedtuple("Falls", ["at", "factor"], defaults=[(), 0.1])
Falls.__doc__ = """When mode "step" falls, and to which part of the rate before.

at : sequence of number
    Epochs from the beginning of the training, or for a curve the steps after warm-up.
factor : float
"""

NO_FALLS = Falls()


def step_curve(lr, steps, falls):
    """The rate falls at each of the `Falls`."""
    return _scheduler("step", steps, base_lr=lr, step_iter=falls.at, step_factor=falls.factor)


def cosine_curve(lr, steps, falls):
    """The rate falls to 0 at the last step (arXiv 1812.01187, section 5.1)."""
    return _scheduler("cosine", steps, base_lr=lr, target_lr=0)


# Each takes the full rate, the steps after warm-up, and the `Falls` in these.
CURVES = {"step": step_curve, "cosine": cosine_curve}


def learning_rates(mode, lr, epochs, steps_per_epoch, warmup_epochs=0, falls=NO_FALLS):
    """A function from the step (0 is the first) to the learning rate.

    Parameters
    ----------
    mode : str
        A name in `CURVES`.
    lr : float
        The full rate.
    epochs, warmup_epochs : number
        In all, and of them with a rate that rises linearly from a hundredth of ``lr``; fewer than all.
    steps_per_epoch : int
    falls : Falls
        Of mode "step".
    """
    warmup_steps = round(warmup_epochs * steps_per_epoch)
    falls = falls._replace(at=[round(epoch * steps_per_epoch) - warmup_steps for epoch in falls.at])
    curve = CURVES[mode](lr, epochs * steps_per_epoch - warmup_steps, falls)
    if not warmup_steps:
        return LRSequential([curve])
    return LRSequential([_scheduler("linear", warmup_steps, base_lr=WARMUP_START * lr, target_lr=lr), curve])


def _scheduler(mode, steps, **rates):
    # GluonCV's curves run from a first to a last step and divide by zero where these are the same.
    return LRScheduler("constant" if steps == 1 else mode, niters=steps, **rates)
