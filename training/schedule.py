"""Learning rate as a function of the step: linear warm-up, then steps or a cosine."""

from gluoncv.utils import LRScheduler, LRSequential

__all__ = ["learning_rates"]

WARMUP_START = 0.01  # of the full rate
STEP_FACTOR = 0.1


def learning_rates(mode, lr, epochs, steps_per_epoch, warmup_epochs=0, lr_steps=()):
    """A function from the step (0 is the first) to the learning rate.

    Parameters
    ----------
    mode : str
        "step": the rate falls to a tenth at each epoch in ``lr_steps``. "cosine": it falls to 0 at the last step
        (arXiv 1812.01187, section 5.1).
    lr : float
        The full rate.
    epochs, warmup_epochs : number
        In all, and of them with a rate that rises linearly from a hundredth of ``lr``; fewer than all.
    steps_per_epoch : int
    lr_steps : sequence of number
        Epochs, counted from the beginning of the training.
    """
    warmup_steps = round(warmup_epochs * steps_per_epoch)
    main_steps = epochs * steps_per_epoch - warmup_steps
    parts = []
    if warmup_steps:
        parts.append(_scheduler("linear", warmup_steps, base_lr=WARMUP_START * lr, target_lr=lr))
    if mode == "cosine":
        parts.append(_scheduler("cosine", main_steps, base_lr=lr, target_lr=0))
    else:
        falls = [round(epoch * steps_per_epoch) - warmup_steps for epoch in lr_steps]
        parts.append(_scheduler("step", main_steps, base_lr=lr, step_iter=falls, step_factor=STEP_FACTOR))
    return LRSequential(parts)


def _scheduler(mode, steps, **rates):
    # GluonCV's curves run from a first to a last step and divide by zero where these are the same.
    return LRScheduler("constant" if steps == 1 else mode, niters=steps, **rates)
