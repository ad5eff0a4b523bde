"""What the training scripts know of a data set."""

from collections import namedtuple

__all__ = ["Dataset"]

Dataset = namedtuple("Dataset", ["name", "classes", "records", "size", "mean", "std", "mirror"])
Dataset.__doc__ = """A data set as records.

name : str
classes : int
records : dict
    {"train": path, "test": path} of .rec files.
size : int
    Height and width the network sees, pixels.
mean, std : 3 floats each
    Of the training images' channels (RGB), on the scale 0 to 255.
mirror : bool
    Whether a mirrored image keeps its class.
"""
