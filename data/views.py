"""Single image files as a network sees them in validation: the same window as `data.augmentation.CentreWindow`."""

import os

import cv2
import numpy as np

from base.errors import UserError
from base.files import open_regular, reading
from data.folders import images_below
from data.images import FORMATS, opened, upright_rgb

__all__ = ["denormalized", "list_pictures", "normalized", "read_view"]


def list_pictures(paths):
    """The image files that paths name: files as they are, folders with all images in and below them. A list of str.

    Raises UserError for a folder that cannot be read or holds no image.
    """
    found = []
    for path in map(os.fspath, paths):
        if not os.path.isdir(path):
            found.append(path)
            continue
        with reading(path):
            below = images_below(path)
        if not below:
            raise UserError(f"the folder {path} holds no image")
        found += below
    return found


def read_view(path, size, crop_ratio):
    """What a network sees of an image file of any size and mode: uint8 RGB, (size, size, 3).

    Parameters
    ----------
    path : path
    size : int
        Pixels.
    crop_ratio : float
        The short side shrinks to ``size / crop_ratio``; the view is the middle.

    Raises ValueError, with the reason in one line, for what cannot be read or is no image.
    """
    try:
        with open_regular(path) as file:
            content = file.read()
    except (OSError, MemoryError) as error:
        raise ValueError(getattr(error, "strerror", None) or "too large for the memory") from None
    with opened(content, FORMATS) as image:
        image.load()
        pixels = np.asarray(upright_rgb(image))
    side = crop_ratio * min(pixels.shape[:2])
    rows, columns = (_middle(length, side) for length in pixels.shape[:2])
    window = pixels[rows, columns]
    # Bilinear without a low-pass before shrinking, as the loader does it.
    return cv2.resize(window, (size, size), interpolation=cv2.INTER_LINEAR)


def _middle(length, side):
    """The slice of the middle ``side`` pixels of ``length``: both ends rounded, as DALI does it."""
    start = (length - side) / 2
    first = int(start + 0.5)
    return slice(first, max(first + 1, int(start + side + 0.5)))


def normalized(views, mean, std):
    """Views (N, H, W, 3) as a network's input: float32 (N, 3, H, W). Mean and std are those of the channels."""
    return ((np.float32(views) - np.float32(mean)) / np.float32(std)).transpose(0, 3, 1, 2)


def denormalized(images, mean, std):
    """A network's input (N, 3, H, W) as views: uint8 (N, H, W, 3)."""
    pixels = images.transpose(0, 2, 3, 1) * np.float32(std) + np.float32(mean)
    return pixels.round().clip(0, 255).astype(np.uint8)
