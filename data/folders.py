"""Photographs in one folder a class: FOLDER/CLASS/**/IMAGE."""

import os
from pathlib import Path

import numpy as np

from base.errors import UserError

__all__ = ["FolderImages", "list_images"]

SUFFIXES = {".jpeg", ".jpg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


def list_images(folder):
    """The classes and images of a folder: (class names, image paths as str, labels as int), all lists.

    A class is a folder in ``folder``; its label is its place among their sorted names, as im2rec and others count. Its
    images may lie deeper. Hidden files and files without an image's suffix do not count.

    Raises UserError where there is no class, an image outside all classes, or a class without an image.
    """
    try:
        entries = sorted((entry for entry in os.scandir(folder) if not entry.name.startswith(".")), key=_name)
        classes = [entry.name for entry in entries if entry.is_dir()]
        stray = next((entry.name for entry in entries if not entry.is_dir() and _is_image(entry.name)), None)
        if stray is not None:
            raise UserError(f"{folder} holds images outside class folders ({stray}): sort them into FOLDER/CLASS/")
        if not classes:
            raise UserError(f"{folder} has no class folders (FOLDER/CLASS/IMAGE) in it")
        paths, labels = [], []
        for label, name in enumerate(classes):
            found = _images_below(os.path.join(folder, name))
            if not found:
                raise UserError(f"the class folder {os.path.join(folder, name)} holds no image")
            paths += found
            labels += [label] * len(found)
    except OSError as error:
        raise UserError(f"cannot read {error.filename}: {error.strerror}") from None
    return classes, paths, labels


def _name(entry):
    return entry.name


def _is_image(name):
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES


def _images_below(folder):
    paths = []
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders.sort()
        paths += [os.path.join(parent, name) for name in sorted(files) if _is_image(name)]
    return paths


class FolderImages:
    """The encoded images and labels of class folders, addressed by position as those of `data.records.Records`.

    Every image is a file of its own, opened when it is asked for: fit for small sets and for trying things out. DALI
    does not turn images as their EXIF data say; `data.imagenet.prepare` does.

    Parameters
    ----------
    path : path
        The folder of class folders.
    limit : int, optional
        Only so many images exist, spread over all classes.

    Raises UserError as `list_images` does, and for a file that cannot be read.
    """

    def __init__(self, path, limit=None):
        self.path = Path(path)
        _, paths, labels = list_images(path)
        everything = np.arange(len(paths))
        if limit is not None and limit < len(paths):
            everything = np.linspace(0, len(paths), limit, endpoint=False).astype(int)
        self._paths = [paths[position] for position in everything]
        self._labels = np.array(labels, np.float32)[everything]

    def __len__(self):
        return len(self._paths)

    def labels(self, positions):
        """Labels at ``positions`` (int array of any length n): float32 array of (n,)."""
        return self._labels[positions]

    def encoded(self, positions):
        """Encoded images at ``positions`` (int array): a list of 1-d uint8 arrays."""
        try:
            return [np.fromfile(self._paths[position], np.uint8) for position in positions]
        except OSError as error:
            raise UserError(f"cannot read {error.filename}: {error.strerror}") from None
