"""Photographs in one folder a class: FOLDER/CLASS/**/IMAGE."""

import errno
import os
from pathlib import Path

import numpy as np

from base.errors import UserError
from base.files import reading
from base.text import has_controls, one_line

__all__ = ["FolderImages", "images_below", "list_images"]

SUFFIXES = {".jpeg", ".jpg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


def list_images(folder):
    """The classes and images of a folder: (class names, image paths as str, labels as int), all lists.

    A class is a folder in ``folder``; its label is its place among their sorted names, as im2rec and others count. Its
    images may lie deeper, each folder counting once: links are followed, but not back to where they came from, nor to
    another class. Hidden files and folders, and files without an image's suffix, do not count.

    Raises UserError where there is no class, an image outside all classes, a class without an image or with a name of
    several lines, a link that leads nowhere, or an image that is no regular file.
    """
    with reading(folder):
        folders, files = _entries(folder)
        folders = [entry for entry in folders if not entry.name.startswith(".")]
        classes = [entry.name for entry in folders]
        stray = next((entry.name for entry in files if _is_image(entry.name)), None)
        if stray is not None:
            raise UserError(f"{folder} holds images outside class folders ({stray}): sort them into FOLDER/CLASS/")
        if not classes:
            raise UserError(f"{folder} has no class folders (FOLDER/CLASS/IMAGE) in it")
        root = Path(os.path.realpath(folder))
        above, own = ({_identity(path) for path in paths} for paths in ([root, *root.parents], folders))
        paths, labels = [], []
        for label, entry in enumerate(folders):
            if has_controls(os.fsencode(entry.name).decode("utf-8", "surrogateescape")):
                raise UserError(f"the class folder {entry.path} has a control character in its name")
            found = images_below(entry.path, above | own - {_identity(entry)})
            if not found:
                raise UserError(f"the class folder {entry.path} holds no image")
            paths += found
            labels += [label] * len(found)
    return classes, paths, labels


def _entries(folder):
    """The folders and the files of a folder, each a list of os.DirEntry in the order of their names' bytes.

    Raises UserError for a symbolic link that leads nowhere.
    """
    found = [], []
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=_name):
            found[not _is_folder(entry)].append(entry)
    return found


def _name(entry):
    return os.fsencode(entry.name)  # the same order in any locale


def _is_folder(entry):
    try:
        if entry.is_symlink():
            entry.stat()  # which raises what is_dir() keeps to itself
        return entry.is_dir()
    except OSError as error:
        if entry.name.startswith("."):  # editors lock files with links that lead nowhere
            return False
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise
        raise UserError(f"{entry.path} is a symbolic link that leads nowhere") from None


def _identity(path):
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _is_image(name):
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES


def images_below(folder, barred=()):
    """Paths of the images in a folder and those below it, except in folders whose `_identity` is in ``barred``.

    Raises OSError, and UserError for a link that leads nowhere and an image that is no regular file.
    """
    paths, left, seen = [], [(folder, _identity(folder))], set(barred)
    while left:
        parent, identity = left.pop()
        if identity in seen:
            continue
        seen.add(identity)
        folders, files = _entries(parent)
        for entry in files:
            if _is_image(entry.name):
                if not entry.is_file():
                    raise UserError(f"{entry.path} is no regular file: remove it from the images")
                paths.append(entry.path)
        shown = [entry for entry in reversed(folders) if not entry.name.startswith(".")]
        left += [(entry.path, _identity(entry.path)) for entry in shown]  # the first is the next
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
        return [_content(self._paths[position]) for position in positions]

    def name(self, position):
        """What to call the image at a position in a message."""
        return one_line(self._paths[position])


def _content(path):
    try:
        return np.fromfile(path, np.uint8)
    except (OSError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or "it is too large for the memory"
        raise UserError(f"cannot read {path}: {reason}") from None
