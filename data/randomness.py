"""Random draws as a function of where in a training they are made."""

import zlib

import numpy as np

__all__ = ["generator"]


def generator(seed, purpose, *place):
    """A numpy Generator for one purpose at one place, e.g. ``generator(seed, "crop", epoch, step, shard)``.

    Nothing is carried from one draw to the next: repeating a run, starting in the middle of an epoch and giving every
    device draws of its own are all a matter of asking with the same or another place.

    Parameters
    ----------
    seed : int
        Of the run, not negative.
    purpose : str
        Keeps draws for different things apart.
    place : int
        Not negative; any number of them.
    """
    return np.random.default_rng([seed, zlib.crc32(purpose.encode()), *place])
