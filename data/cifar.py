"""CIFAR-10 and CIFAR-100 from their official binary archives (https://www.cs.toronto.edu/~kriz/cifar.html)."""

import functools
from collections import namedtuple
from pathlib import Path

import numpy as np

from base.errors import UserError
from base.files import file_digest, reading
from data.dataset import Dataset
from data.download import download, unpack
from data.records import Unwritten, ensure_records, locked

__all__ = ["cifar_archives", "open_cifar", "open_cifar10", "open_cifar100", "read_rows"]

CifarArchive = namedtuple("CifarArchive", ["url", "md5", "folder", "train", "test", "label_bytes", "classes"])

SITE = "https://www.cs.toronto.edu/~kriz"
PIXEL_BYTES = 3 * 32 * 32

# Checksums as the data sets' page publishes them. CIFAR-100 rows start with the coarse and the fine label.
cifar_archives = {
    "cifar10": CifarArchive(
        url=f"{SITE}/cifar-10-binary.tar.gz",
        md5="c32a1d4ab5d03f1284b67883e8d13530",
        folder="cifar-10-batches-bin",
        train=[f"data_batch_{i}.bin" for i in range(1, 6)],
        test=["test_batch.bin"],
        label_bytes=1,
        classes=10,
    ),
    "cifar100": CifarArchive(
        url=f"{SITE}/cifar-100-binary.tar.gz",
        md5="03b5dce01913d631647c71ecec9e9cb8",
        folder="cifar-100-binary",
        train=["train.bin"],
        test=["test.bin"],
        label_bytes=2,
        classes=100,
    ),
}

# Mean and standard deviation of the training images' channels, the figures in common use times 255.
CHANNELS = {
    "cifar10": ((125.3, 123.0, 113.9), (63.0, 62.1, 66.7)),
    "cifar100": ((129.3, 124.1, 112.4), (68.2, 65.4, 70.4)),
}

FINE_CLASSES = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
    castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
    elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster
    man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck
    pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
    skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger
    tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""

# By label, as the archives' own lists have them; both are in the order of the alphabet.
CLASS_NAMES = {
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    "cifar100": tuple(FINE_CLASSES.split()),
}


def open_cifar(name, data_dir, may_write=True):
    """CIFAR-10 or CIFAR-100 (fine labels) as a `Dataset`: 50,000 images for training, 10,000 to test.

    The binary files are taken from ``data_dir``/cifar-10-batches-bin (cifar-100-binary) or fetched there, and written
    once to ``data_dir``/records/NAME. Fewer rows than the official files have are read as they are.

    Raises UserError where files are missing and cannot, or without ``may_write`` may not, be fetched, or are not in the
    official layout.
    """
    data_dir = Path(data_dir)
    archive = cifar_archives[name]
    folder = data_dir / archive.folder
    _ensure_binary_files(name, archive, data_dir, may_write)
    files = {file: folder / file for file in archive.train + archive.test}
    with reading(folder):
        source = {"sha256": {file: file_digest(path) for file, path in files.items()}}

    def split(names):
        images, labels = zip(*(read_rows(files[file], archive) for file in names))
        return zip(np.concatenate(images), np.concatenate(labels).tolist()), sum(map(len, labels))

    splits = {"train": lambda: split(archive.train), "test": lambda: split(archive.test)}
    records = ensure_records(data_dir / "records" / name, source, splits, may_write)
    mean, std = CHANNELS[name]
    return Dataset(name, archive.classes, records, 32, mean, std, mirror=True, class_names=CLASS_NAMES[name])


open_cifar10 = functools.partial(open_cifar, "cifar10")
open_cifar100 = functools.partial(open_cifar, "cifar100")


def read_rows(path, archive):
    """Images and labels of one binary file: uint8 (N, 32, 32, 3) RGB and uint8 (N,), the last label of each row.

    Raises UserError for a file that is no whole number of rows or holds a label the data set does not have.
    """
    row_bytes = archive.label_bytes + PIXEL_BYTES
    table = np.fromfile(path, np.uint8)
    if len(table) == 0 or len(table) % row_bytes:
        raise UserError(f"{path} is damaged: {len(table)} bytes are no whole number of rows of {row_bytes}")
    table = table.reshape(-1, row_bytes)
    labels = table[:, archive.label_bytes - 1]
    if labels.max() >= archive.classes:
        raise UserError(f"{path} is damaged: it holds label {labels.max()}, and there are {archive.classes} classes")
    return table[:, archive.label_bytes :].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels


def _ensure_binary_files(name, archive, data_dir, may_write):
    """Fetch and unpack the archive unless every binary file is there."""
    names = archive.train + archive.test
    folder = data_dir / archive.folder
    missing = [file for file in names if not (folder / file).is_file()]
    if not missing:
        return
    if not may_write:
        raise Unwritten(folder)
    try:
        with locked(data_dir / archive.folder):
            packed = data_dir / archive.url.rsplit("/", 1)[1]
            download(archive.url, packed, archive.md5)
            unpack(packed, [f"{archive.folder}/{file}" for file in names], data_dir)
    except (OSError, UserError) as error:
        raise UserError(
            f"{name} is not complete in {folder} (no {missing[0]}) and could not be fetched: {error}; "
            "put its binary files there, name another folder with --data-dir, or try --dataset digits"
        ) from None
