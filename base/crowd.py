"""How many cores other processes keep busy. Imports nothing heavy."""

import os
import time
from pathlib import Path

from base.runtime import cores_of

__all__ = ["busy_cores"]

SECONDS = 0.5  # a look takes so long; the kernel counts in hundredths
IDLE = slice(3, 5)  # of a line of /proc/stat: idle, and waiting for a disk
COUNTED = slice(0, 8)  # the rest of it, guests, is in the first ones too


def busy_cores(root="/", cpus=None, pause=lambda: time.sleep(SECONDS)):
    """How many of the cores that this process may use are busy, rounded, while it does nothing itself.

    A core is as busy as the busiest of its hyper-threads. Where the kernel does not say, none is.

    Parameters
    ----------
    root : path
        Where the trees /sys and /proc are found.
    cpus : iterable of int, optional
        The numbers of the logical CPUs to look at; those of this process's affinity mask by default.
    pause : callable
        Waits between two looks.
    """
    before = _ticks(root)
    pause()
    after = _ticks(root)
    shares = []
    for core in cores_of(os.sched_getaffinity(0) if cpus is None else cpus, root):
        known = [cpu for cpu in core if cpu in before and cpu in after]
        shares.append(max((_busy_share(before[cpu], after[cpu]) for cpu in known), default=0.0))
    return round(sum(shares))


def _ticks(root):
    """{CPU's number: the kernel's counts of what it did} since the machine was started."""
    try:
        lines = Path(root, "proc/stat").read_text().splitlines()
        words = [line.split() for line in lines if line.startswith("cpu") and not line.startswith("cpu ")]
        return {int(name[3:]): [int(count) for count in counts] for name, *counts in words}
    except (OSError, ValueError):
        return {}


def _busy_share(before, after):
    passed = [late - early for early, late in zip(before[COUNTED], after[COUNTED])]
    return 1 - sum(passed[IDLE]) / sum(passed) if sum(passed) > 0 else 0.0
