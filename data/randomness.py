"""Random draws as a function of where in a training they are made."""

import zlib

import numpy as np

__all__ = ["generator"]


def generator(seed, purpose, *coordinates):
    """A numpy Generator for one purpose at one point: ``generator(seed, "augmentation", epoch, step, shard)``.

    Nothing is carried from one draw to the next: repeating a run, starting in the middle of an epoch and giving every
    device draws of its own are all a matter of asking with the same or other coordinates.

    Parameters
    ----------
    seed : int
        Of the run, not negative.
    purpose : str
        Keeps draws for different things apart.
    coordinates : int
        Not negative; any number of them.
    """
    return np.random.default_rng([seed, zlib.crc32(purpose.encode()), *coordinates])
