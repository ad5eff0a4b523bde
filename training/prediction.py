"""A trained network's word on single images."""

from collections import namedtuple

import mxnet as mx
import numpy as np

from base.errors import UserError
from base.text import one_line
from data.datasets import open_dataset, photographs, small_images
from data.loader import Loader, LoaderOptions
from data.views import denormalized, normalized, read_view

__all__ = [
    "Example",
    "batch_examples",
    "check_classes",
    "classify",
    "held_out_examples",
    "network_input",
    "read_example",
    "read_examples",
]

Example = namedtuple("Example", ["name", "view", "true"], defaults=[None])
Example.__doc__ = """An image as a network sees it.

name : str
    The file's path, or the data set's name and a number.
view : array
    uint8 RGB (size, size, 3).
true : int, optional
    Its class.
"""


def read_example(path, description):
    """The `Example` of an image file, of any size and mode, for the network that a description is of.

    Raises ValueError, with the reason in one line, for what is no image.
    """
    return Example(path, read_view(path, description.input_size, description.crop_ratio))


def read_examples(paths, description):
    """The images of files: (list of `Example`, [(path, reason)] of the files that are no images)."""
    examples, broken = [], []
    for path in paths:
        try:
            examples.append(read_example(path, description))
        except ValueError as error:
            broken.append((path, error))
    return examples, broken


def held_out_examples(name, data_dir, count, description):
    """The first ``count`` held-out images of a data set, a list of `Example`, for the network of a description.

    Raises UserError where the data set is missing, broken or of other classes.
    """
    size, options = description.input_size, {}
    if name not in (*small_images, *photographs):
        raise UserError(f"there is no data set {name} here: choose one with --dataset, or --images")
    if name in photographs:
        options = {"size": size, "crop_ratio": description.crop_ratio}
    dataset = open_dataset(name, data_dir, **options)
    check_classes(dataset, description)
    if dataset.size != size:
        raise UserError(
            f"the images of {name} are {dataset.size}x{dataset.size}, and the network was trained on {size}"
        )
    loader = Loader(dataset, "test", LoaderOptions(min(count, 64), seed=0, limit=count), mx.cpu(), training=False)
    examples = [example for batch in loader.epoch(0) for example in batch_examples(batch, dataset)]
    return [example._replace(name=f"{name}-{number}") for number, example in enumerate(examples)]


def batch_examples(batch, dataset):
    """The images of a `data.loader.Batch` of a `data.dataset.Dataset`, a list of `Example`, by the data set's name."""
    views = denormalized(batch.images[: batch.count].asnumpy(), dataset.mean, dataset.std)
    return [Example(dataset.name, view, int(label)) for view, label in zip(views, batch.labels.asnumpy())]


def check_classes(dataset, description):
    """Raise UserError unless a data set has the classes of a network."""
    if dataset.classes != len(description.classes):
        raise UserError(
            f"{dataset.name} has {dataset.classes} classes, and the network has {len(description.classes)}, "
            f"those of {description.dataset}"
        )
    nameless = description.classes == tuple(map(str, range(dataset.classes)))
    if dataset.class_names is None or (nameless and description.dataset not in small_images):
        return  # of records without a list of classes
    names = tuple(map(one_line, dataset.class_names))
    if names != description.classes:
        ours, theirs = next(pair for pair in zip(names, description.classes) if pair[0] != pair[1])
        raise UserError(
            f"{dataset.name} has other classes than the network, which was trained on {description.dataset}: "
            f"{ours} in the place of {theirs}"
        )


def network_input(net, views, description):
    """Views (N, H, W, 3) as a batch for a network, on its first device: NDArray (N, 3, H, W)."""
    parameter = next(iter(net.collect_params().values()))
    images = normalized(np.stack(views), description.mean, description.std)
    return mx.nd.array(images, ctx=parameter.list_ctx()[0], dtype=parameter.dtype)


def classify(net, images):
    """The probabilities of all classes for a batch: numpy (N, classes)."""
    return net(images).astype("float32").softmax().asnumpy()
