"""How far a training has come. Imports nothing heavy."""

import dataclasses
import math

from training.averages import Averages

__all__ = ["TrainingProgress"]


@dataclasses.dataclass
class TrainingProgress:
    """How far a training has come. Where ``step`` is ``steps``, an epoch's steps are done and it is not validated.

    Attributes
    ----------
    steps : int
        Of an epoch.
    epoch, step : int
        Epochs done, and steps of the one after them.
    seconds : float
        Spent on these steps.
    averages : training.averages.Averages
        Of these steps.
    skipped : int
        Steps in a row, up to here, that were left out because their loss was not finite.
    best_accuracy, best_epoch : float, int
        Of the best validation so far, with --ema that of the average; epochs count from 1.
    accuracy : float
        Of the last such validation; -1 before any, and in checkpoints from before it was kept.
    """

    steps: int
    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    averages: Averages = dataclasses.field(default_factory=lambda: Averages({}))
    skipped: int = 0
    best_accuracy: float = -1.0
    best_epoch: int = 0
    accuracy: float = -1.0

    @property
    def global_step(self):
        """Steps since the beginning of the training."""
        return self.epoch * self.steps + self.step

    def finish_epoch(self, accuracy):
        """On to the next epoch; ``accuracy`` is the validation's."""
        self.epoch, self.step, self.seconds, self.averages = self.epoch + 1, 0, 0.0, Averages({})
        self.accuracy = accuracy
        if accuracy > self.best_accuracy:
            self.best_accuracy, self.best_epoch = accuracy, self.epoch

    def to_json(self):
        """As a dictionary of numbers; `from_json` makes it a progress again."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        accuracies = {"best_accuracy": float(self.best_accuracy), "accuracy": float(self.accuracy)}
        return {**fields, "averages": self.averages.sums(), **accuracies}

    @classmethod
    def from_json(cls, values, steps):
        """The progress in epochs of ``steps`` steps; another number of devices makes these more or fewer.

        Raises ValueError where ``values`` are none that `to_json` gives.
        """
        try:
            values = dict(values)
            if "totals" in values:  # as checkpoints had it before figures had names
                count, loss, hits = values.pop("totals")
                values["averages"] = {"loss": (count, loss), "metric": (count, hits)}
            sums = {str(name): (count, total) for name, (count, total) in values["averages"].items()}
            progress = cls(**{**values, "averages": Averages(sums)})
        except (AttributeError, TypeError, KeyError, ValueError) as error:
            raise ValueError(f"no progress of a training: {error}") from None
        counts = [count for count, _ in sums.values()]
        whole = (progress.steps, progress.epoch, progress.step, progress.skipped, progress.best_epoch, *counts)
        real = (progress.seconds, progress.best_accuracy, progress.accuracy, *(total for _, total in sums.values()))
        are_whole = all(type(number) is int and 0 <= number < 2**53 for number in whole)
        if not are_whole or not all(type(number) is float and math.isfinite(number) for number in real):
            raise ValueError("no progress of a training: a number is missing or out of range")
        if progress.step > progress.steps or (progress.seconds > 0) != (progress.step > 0):
            raise ValueError(
                f"no progress of a training: step {progress.step} of {progress.steps} in {progress.seconds} s"
            )
        if progress.step:  # 0 stays the only step at which an epoch has just ended
            progress.step = max(1, progress.step * steps // progress.steps)
        progress.steps = steps
        return progress
