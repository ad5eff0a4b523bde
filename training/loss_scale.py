"""A factor of the loss, by which gradients of half precision use their range (arXiv 1710.03740, section 3.2)."""

import math

from base.errors import UserError

__all__ = ["LossScale"]

FIRST, MOST = 2.0**16, 2.0**24
GOOD_STEPS = 2000  # after which the scale is doubled


class LossScale:
    """A power of two that follows what gradients can bear, as MXNet's contrib.amp has it.

    Attributes
    ----------
    value : float
        What the loss is multiplied by; the update divides by it again.
    good : int
        Steps in a row with finite gradients since the value changed.
    """

    def __init__(self):
        self.value, self.good = FIRST, 0

    def on_good_step(self):
        """Double the value after so many of these in a row."""
        self.good += 1
        if self.good == GOOD_STEPS:
            self.value, self.good = min(MOST, 2 * self.value), 0

    def on_overflow(self):
        """Halve the value. Returns whether that was possible: an overflow at 1 is not the scale's fault."""
        possible = self.value > 1
        self.value, self.good = max(1.0, self.value / 2), 0
        return possible

    def to_json(self):
        """As a list of numbers, which `restore` takes."""
        return [self.value, self.good]

    def restore(self, saved):
        """Take over what `to_json` gave. Raises UserError for what it cannot have given."""
        try:
            value, good = float(saved[0]), int(saved[1])
            if len(saved) != 2 or not 1 <= value <= MOST or math.frexp(value)[0] != 0.5 or not 0 <= good < GOOD_STEPS:
                raise ValueError
        except (IndexError, KeyError, TypeError, ValueError, OverflowError):
            raise UserError("the checkpoint's scale of the loss is none that a training can have had") from None
        self.value, self.good = value, good
