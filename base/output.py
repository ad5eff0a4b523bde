"""Output that fails: a pipe whose reader has gone, a full disk behind a redirection, a closed terminal."""

import contextlib
import os
import sys

__all__ = ["lasting_output", "open_closed_descriptors", "settled_output"]


def open_closed_descriptors():
    """Give a process that was started with stdin, stdout or stderr closed (``>&-``) an empty one.

    Otherwise the next file that it opens would get the number, and with it all that is printed. Python's own streams
    are then None, which print() takes for stdout.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115


@contextlib.contextmanager
def lasting_output():
    """While entered, a stdout or stderr that cannot be written any more is said on the other one and left alone."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = LastingStream(sys.stdout, "stdout"), LastingStream(sys.stderr, "stderr")
    sys.stdout.other, sys.stderr.other = sys.stderr, sys.stdout
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


@contextlib.contextmanager
def settled_output():
    """Lose, at the end, what stdout and stderr cannot take: Python would try again and end with a status of its own."""
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:
                _send_nowhere(stream)


def _send_nowhere(stream):
    """Let a stream end in the null device, and so what still waits in its buffer."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


class LastingStream:
    """A text stream that goes nowhere from its first failure on.

    Parameters
    ----------
    stream : text file
    name : str

    Attributes
    ----------
    other : LastingStream
        Where a failure is said.
    """

    other = None

    def __init__(self, stream, name):
        self._stream, self._name = stream, name

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def write(self, text):
        """Write; returns the number of characters."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._give_up(error)
            return len(text)

    def flush(self):
        """Write what waits in a buffer."""
        try:
            self._stream.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error):
        _send_nowhere(self._stream)
        print(
            f"{self._name} cannot be written any more ({error.strerror}): going on without it; the run's files have "
            "all its lines",
            file=self.other,
            flush=True,
        )
