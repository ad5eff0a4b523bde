"""Where a training is. Imports nothing heavy."""

import dataclasses
import math
from collections import deque

__all__ = ["Position", "Totals"]


class Totals:
    """Sums over an epoch's images of what was found for each, read from the devices late so that these need not stop.

    Parameters
    ----------
    count, sums : numbers
        Images so far, and the sum of each thing that is found for one.
    """

    def __init__(self, count, *sums):
        self._pending = deque()
        self._sums = [count, *sums]

    def add(self, count, *found):
        """``found`` are arrays (count,), as many each time."""
        self._pending.append([count, *(values.sum() for values in found)])

    def settle(self, behind=0):
        """Wait for all that was added but the last ``behind`` additions."""
        while len(self._pending) > behind:
            count, *sums = self._pending.popleft()
            self._sums[0] += count
            for thing, total in enumerate(sums, 1):
                self._sums[thing] += total.asscalar()

    def means(self):
        """The mean of each thing found, of what has settled; NaN before anything has."""
        count, *sums = self._sums
        return [float(total / count) if count else math.nan for total in sums]

    def sums(self):
        """[count, sum, ...] of all that was added, which make the same `Totals` again."""
        self.settle()
        return [self._sums[0], *map(float, self._sums[1:])]


@dataclasses.dataclass
class Position:
    """Where a training is: an epoch's steps are all done, and it is not validated, where ``step`` is ``steps``.

    steps : int
        Of an epoch.
    epoch, step : int
        Epochs done, and steps of the one after them.
    seconds : float
        Spent on these steps.
    totals : Totals
        Of these steps: losses, and hits as `data.mixup.Mixing.metric_name` counts them.
    skipped : int
        Steps in a row, up to here, that were left out because their loss was not finite.
    best_accuracy, best_epoch : float, int
        Of the best validation so far; epochs count from 1.
    """

    steps: int
    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    totals: Totals = dataclasses.field(default_factory=lambda: Totals(0, 0.0, 0.0))
    skipped: int = 0
    best_accuracy: float = -1.0
    best_epoch: int = 0

    def finish_epoch(self, accuracy):
        """On to the next epoch; ``accuracy`` is the validation's."""
        self.epoch, self.step, self.seconds, self.totals = self.epoch + 1, 0, 0.0, Totals(0, 0.0, 0.0)
        if accuracy > self.best_accuracy:
            self.best_accuracy, self.best_epoch = accuracy, self.epoch

    def to_json(self):
        """As a dictionary of numbers; `from_json` makes it a position again."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {**fields, "totals": self.totals.sums(), "best_accuracy": float(self.best_accuracy)}

    @classmethod
    def from_json(cls, values, steps):
        """The position in epochs of ``steps`` steps; another number of devices makes these more or fewer.

        Raises ValueError where ``values`` are none that `to_json` gives.
        """
        try:
            count, loss, hits = values["totals"]
            position = cls(**{**values, "totals": Totals(count, loss, hits)})
            whole = (position.steps, position.epoch, position.step, position.skipped, position.best_epoch, count)
            real = (position.seconds, position.best_accuracy, loss, hits)
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(f"no position: {error}") from None
        are_whole = all(type(number) is int and 0 <= number < 2**53 for number in whole)
        if not are_whole or not all(type(number) is float and math.isfinite(number) for number in real):
            raise ValueError("no position: a number is missing or out of range")
        if position.step > position.steps or (position.seconds > 0) != (position.step > 0):
            raise ValueError(f"no position: step {position.step} of {position.steps} in {position.seconds} s")
        if position.step:  # 0 stays the only step at which an epoch has just ended
            position.step = max(1, position.step * steps // position.steps)
        position.steps = steps
        return position
