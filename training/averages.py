"""Means over the images of an epoch. Imports nothing heavy."""

import math
from collections import deque

__all__ = ["Averages"]


class Averages:
    """Means over an epoch's images of figures by name, read from the devices late so that these need not stop.

    Parameters
    ----------
    sums : dict
        {name: (images so far, sum of their figures)}.
    """

    def __init__(self, sums):
        self._sums = {name: tuple(sums[name]) for name in sums}
        self._pending = deque()

    @classmethod
    def of(cls, names, known=None):
        """Averages of just these names: nothing yet, or what ``known``, another `Averages`, has of them."""
        sums = known.sums() if known else {}
        return cls({name: sums.get(name, (0, 0.0)) for name in names})

    def add(self, figures):
        """Add a batch's ``figures``, {name: NDArray (N,)}."""
        self._pending.append({name: (len(values), values.sum()) for name, values in figures.items()})

    def add_sums(self, sums):
        """Add {name: (images, sum of their figures)}."""
        for name, (count, total) in sums.items():
            images, before = self._sums[name]
            self._sums[name] = (images + count, before + total)

    def collect(self, behind=0):
        """Wait for all that was added but the last ``behind`` additions."""
        while len(self._pending) > behind:
            self.add_sums({name: (count, total.asscalar()) for name, (count, total) in self._pending.popleft().items()})

    def sums(self):
        """{name: (images, sum)} of all that was added, which make the same `Averages` again."""
        self.collect()
        return {name: (count, float(total)) for name, (count, total) in self._sums.items()}

    def means(self):
        """{name: mean} of what was collected; NaN before anything was."""
        return {name: float(total / count) if count else math.nan for name, (count, total) in self._sums.items()}

    def over(self, group, exchange):
        """The `Averages` over the images of all processes of ``group``; ``exchange`` names what they send."""
        sums = self.sums()
        added = group.sum(exchange, list(sums.values())) if sums else []
        return Averages({name: (int(count), float(total)) for name, (count, total) in zip(sums, added)})
