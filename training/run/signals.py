"""SIGTERM, SIGHUP and Ctrl-C as a wish that the training grants when its step is done."""

import signal
import time

from base.errors import stop_signals

__all__ = ["StopSignals"]


class StopSignals:
    """While entered, notes SIGTERM, SIGHUP and Ctrl-C instead of ending the process. A second Ctrl-C ends it at
    once, and a SIGHUP that is ignored stays so.

    Attributes
    ----------
    number : int or None
        The signal that came.
    """

    def __init__(self):
        self.number = self._when = None

    def age(self):
        """Seconds since the signal came; 0 where none has."""
        return 0 if self.number is None else time.monotonic() - self._when

    def _note(self, number, _):
        self.number, self._when = number, time.monotonic()
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # the kernel's own ending needs nobody to look at a flag

    def __enter__(self):
        self._before = {number: signal.signal(number, self._note) for number in stop_signals()}
        return self

    def __exit__(self, *exception):
        for number, handler in self._before.items():
            signal.signal(number, handler)
