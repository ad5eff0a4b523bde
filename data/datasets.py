"""Data sets by name. Imports nothing heavy: what a data set needs is imported when it is opened.

Each is a function that takes the folder of the data sets, and options of its own, and returns a
`data.dataset.Dataset`; another one is another function and a line here.
"""

import importlib

__all__ = ["open_dataset", "photographs", "small_images"]

# of 32x32 pixels
small_images = {
    "cifar10": "data.cifar.open_cifar10",
    "cifar100": "data.cifar.open_cifar100",
    "digits": "data.digits.open_digits",
}

# of any size
photographs = {
    "imagenet": "data.imagenet.open_imagenet",
}


def open_dataset(name, data_dir, **options):
    """The `data.dataset.Dataset` of a name in the tables above.

    Raises UserError where it is not in ``data_dir`` and cannot be brought there.
    """
    module, _, function = {**small_images, **photographs}[name].rpartition(".")
    return getattr(importlib.import_module(module), function)(data_dir, **options)
