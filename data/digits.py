"""Handwritten digits that scikit-learn ships: 1,797 real scans of 8x8 pixels in 10 classes, no download needed.

Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository (1998).
"""

from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np

from data.dataset import Dataset
from data.records import ensure_records

__all__ = ["open_digits"]


def open_digits(data_dir, may_write=True):
    """The digits as a `Dataset` of 32x32 RGB images: 1,437 for training and a held-out fifth, 360, to test.

    Written to ``data_dir``/records/digits, unless they are there. Raises UserError where that cannot, or may not, be
    done.
    """
    source = {"package": "scikit-learn", "version": version("scikit-learn")}
    splits = {"train": lambda: _split("train"), "test": lambda: _split("test")}
    records = ensure_records(Path(data_dir) / "records" / "digits", source, splits, may_write)
    # mean and standard deviation were measured on the training images; a mirrored digit is another sign
    return Dataset("digits", 10, records, 32, (77.9,) * 3, (82.5,) * 3, mirror=False, class_names="0123456789")


def _split(split):
    # imported late: it takes a second and is needed only to write the records
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    scans, labels = load_digits(return_X_y=True)
    train, test = train_test_split(np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=0)
    chosen = train if split == "train" else test
    images = (_as_rgb(scans[position].reshape(8, 8)) for position in chosen)
    return zip(images, labels[chosen].tolist()), len(chosen)


def _as_rgb(scan):
    """An 8x8 scan of values 0 to 16 as a 32x32 RGB image of values 0 to 255."""
    enlarged = cv2.resize(scan / 16 * 255, (32, 32), interpolation=cv2.INTER_LINEAR)
    return np.repeat(enlarged.round().astype(np.uint8)[:, :, None], 3, axis=2)
