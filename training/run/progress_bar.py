"""What the terminal shows of an epoch while it runs."""

import time

from tqdm import tqdm

__all__ = ["ProgressBar"]


class ProgressBar:
    """A bar over the steps of an epoch; where the output is no terminal, a plain line every so many steps.

    Parameters
    ----------
    steps : int
    description : str
    interval : int
        Steps between plain lines.
    done : int
        Steps that were done before.
    shown : bool
        Whether to print anything at all.
    """

    def __init__(self, steps, description, interval, done=0, shown=True):
        self._steps, self._description, self._interval = steps, description, interval
        self._started = time.monotonic()
        self._done, self._before, self._images = done, done, 0
        self._shown = shown
        disable = None if shown else True  # None: where the output is no terminal
        self._bar = tqdm(total=steps, initial=done, desc=description, unit="step", leave=False, disable=disable)

    def step(self, images, loss=None):
        """One more step done, of ``images`` images; ``loss`` is the mean since the beginning."""
        self._done += 1
        self._images += images
        seconds = time.monotonic() - self._started
        figures = {"images/s": f"{self._images / seconds:.1f}"}
        if loss is not None:
            figures = {"loss": f"{loss:.4f}", **figures}
        if not self._bar.disable:
            self._bar.set_postfix(figures, refresh=False)
            self._bar.update()
        elif self._shown and self._done % self._interval == 0:
            left = tqdm.format_interval(seconds / (self._done - self._before) * (self._steps - self._done))
            figures = "  ".join(f"{name} {value}" for name, value in figures.items())
            print(f"{self._description}  step {self._done}/{self._steps}  {figures}  {left} left", flush=True)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._bar.close()
