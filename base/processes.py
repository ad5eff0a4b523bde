"""Processes that this one starts."""

import ctypes
import os
import signal

__all__ = ["die_with"]

PR_SET_PDEATHSIG = 1  # Linux: the signal that a process gets when its parent dies
_libc = ctypes.CDLL(None)  # opened here: between fork and exec is no time for it


def die_with(parent):
    """Have the kernel end this process by SIGKILL when its parent, process number ``parent``, dies however it dies."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it has died already
        os.kill(os.getpid(), signal.SIGKILL)
