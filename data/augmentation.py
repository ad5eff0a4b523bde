"""How the network sees an image: which part of it, and in what colours.

Each class here has two halves. ``draw`` makes one array for each of its ``inputs`` from a batch of encoded images and a
numpy Generator; another method does with them, in a DALI graph and on either device, what was drawn.
"""

import struct

import numpy as np
from nvidia.dali import fn, types

from data.images import opened

__all__ = ["CentreWindow", "ColourJitter", "Cutout", "PaddedCrop", "RandomErasing", "RandomWindow", "WholeImage"]

# Eigenvalues and eigenvectors (columns) of the covariance of ImageNet's pixels, RGB on the scale 0 to 255: the basis of
# the colour augmentation of Krizhevsky et al. (2012, section 4.1), in the figures in common use.
PIXEL_DEVIATIONS = np.array([55.46, 4.794, 1.148])
PIXEL_AXES = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])


class WholeImage:
    """The image as it is; all have the network's size."""

    inputs = 0

    def draw(self, encoded, generator):
        return ()

    def decode(self, encoded, size, device):
        return fn.decoders.image(encoded, device=device, output_type=types.RGB)


class PaddedCrop:
    """A random crop from a frame of black pixels around an image of the network's size.

    Parameters
    ----------
    padding : int
        Pixels on every side.
    """

    inputs = 1

    def __init__(self, padding):
        self.padding = padding

    def draw(self, encoded, generator):
        """Corners (N, 2), row and column in the image, negative in the frame."""
        shape = len(encoded), 2
        return (generator.integers(-self.padding, self.padding, shape, dtype=np.int32, endpoint=True),)

    def decode(self, encoded, size, device, corners):
        images = fn.decoders.image(encoded, device=device, output_type=types.RGB)
        # A window that starts outside the image is a crop of the padded one, and exists for either device.
        return fn.slice(images, start=corners, shape=[size] * 2, axes=[0, 1], out_of_bounds_policy="pad", fill_values=0)


class Window:
    """A part of an image, resized to the network's size. Only that part is decoded."""

    inputs = 2

    def decode(self, encoded, size, device, starts, extents):
        images = fn.decoders.image_slice(encoded, starts, extents, axes=[0, 1], device=device, output_type=types.RGB)
        # Bilinear without a low-pass before shrinking, as OpenCV does it and with it MXNet's own loader.
        return fn.resize(images, size=[size] * 2, antialias=False)


class RandomWindow(Window):
    """Scale and aspect-ratio augmentation (Szegedy et al., arXiv 1409.4842, section 6; the paper's section 4.2).

    Parameters
    ----------
    area : 2 floats
        Bounds of the window's share of the image.
    aspect : 2 floats
        Bounds of its width / height, in pixels, drawn on a logarithmic scale.
    attempts : int
        Draws until a window fits into the image; after that it is the largest one in the middle.
    """

    def __init__(self, area=(0.08, 1.0), aspect=(3 / 4, 4 / 3), attempts=10):
        self.area, self.aspect, self.attempts = area, aspect, attempts

    def draw(self, encoded, generator):
        """Starts and extents, (N, 2) each, rows and columns as shares of the image's height and width."""
        ratios = aspect_ratios(encoded)
        shape = len(encoded), self.attempts
        area = generator.uniform(*self.area, shape)
        aspect = np.exp(generator.uniform(*np.log(self.aspect), shape)) / ratios[:, None]  # of shares, not of pixels
        tried = np.stack([np.sqrt(area / aspect), np.sqrt(area * aspect)], axis=2)
        fits = (tried <= 1).all(axis=2)
        chosen = tried[np.arange(len(encoded)), fits.argmax(axis=1)]
        starts = generator.uniform(size=(len(encoded), 2))
        aspect = np.clip(ratios, *self.aspect) / ratios
        largest = np.stack([np.minimum(1, 1 / aspect), np.minimum(1, aspect)], axis=1)
        any_fits = fits.any(axis=1, keepdims=True)
        return _windows(np.where(any_fits, starts, 0.5), np.where(any_fits, chosen, largest))


class CentreWindow(Window):
    """The middle of an image whose short side was resized to the network's size / ``crop_ratio``."""

    def __init__(self, crop_ratio):
        self.crop_ratio = crop_ratio

    def draw(self, encoded, generator):
        """As `RandomWindow.draw`, with nothing random."""
        ratios = aspect_ratios(encoded)
        extents = self.crop_ratio * np.stack([np.minimum(1, ratios), np.minimum(1, 1 / ratios)], axis=1)
        return _windows(0.5, extents)


def _windows(shifts, extents):
    """Starts and extents of windows, shifted by a share: 0 at the first possible start and 1 at the last."""
    return (shifts * (1 - extents)).astype(np.float32), extents.astype(np.float32)


class ColourJitter:
    """Random brightness, contrast and saturation, and the paper's standard colour augmentation.

    Parameters
    ----------
    mean : 3 floats
        Of the data set.
    jitter : float
        Brightness, contrast and saturation are multiplied by 1 - jitter to 1 + jitter, each by its own number, as
        GluonCV does it; arXiv 1812.01187, section 2.1, names the hue instead of the contrast. 0 is none of it.
    lighting : float
        Standard deviation of the steps along the principal axes of ImageNet's colours (Krizhevsky et al., 2012).
    """

    def __init__(self, mean, jitter, lighting):
        self.mean, self.jitter, self.lighting = mean, jitter, lighting
        self.inputs = 4 if jitter else 1

    def draw(self, encoded, generator):
        """Means to subtract (N, 3), and with jitter brightness, contrast and saturation, (N,) each."""
        steps = generator.normal(0, self.lighting, (len(encoded), 3)) * PIXEL_DEVIATIONS
        means = np.float32(self.mean - steps @ PIXEL_AXES.T)
        factors = generator.uniform(1 - self.jitter, 1 + self.jitter, (self.inputs - 1, len(encoded)))
        return means, *factors.astype(np.float32)

    def change(self, images, brightness=None, contrast=None, saturation=None):
        if brightness is None:
            return images
        return fn.color_twist(
            images, brightness=brightness, contrast=contrast, saturation=saturation, dtype=types.FLOAT
        )


class Erasing:
    """A rectangle of a normalized image that becomes the data set's mean colour, 0."""

    inputs = 2

    def erase(self, images, starts, extents):
        return fn.erase(images, anchor=starts, shape=extents, axis_names="HW", fill_value=0)


class Cutout(Erasing):
    """A square somewhere in every image (DeVries and Taylor, arXiv 1708.04552); what is outside the image is cut off.

    Parameters
    ----------
    length : int
        Of the square's sides, pixels.
    size : int
        Height and width of the images, pixels.
    """

    def __init__(self, length, size):
        self.length, self.size = length, size

    def draw(self, encoded, generator):
        """Starts and extents, (N, 2) each, rows and columns in pixels. The centre is any pixel of the image."""
        starts = generator.integers(0, self.size, (len(encoded), 2)) - self.length // 2
        ends = np.minimum(starts + self.length, self.size)
        starts = np.maximum(starts, 0)
        return np.float32(starts), np.float32(ends - starts)


class RandomErasing(Erasing):
    """A rectangle in some of the images (Zhong et al., arXiv 1708.04896).

    Parameters
    ----------
    probability : float
        That an image has one.
    size : int
        Height and width of the images, pixels.
    area : 2 floats
        Bounds of the rectangle's share of the image.
    aspect : 2 floats
        Bounds of its height / width, drawn on a logarithmic scale.
    attempts : int
        Draws until a rectangle fits into the image; after that there is none.
    """

    def __init__(self, probability, size, area=(0.02, 0.4), aspect=(0.3, 1 / 0.3), attempts=10):
        self.probability, self.size = probability, size
        self.area, self.aspect, self.attempts = area, aspect, attempts

    def draw(self, encoded, generator):
        """Starts and extents, (N, 2) each, rows and columns in pixels; extents of 0 where nothing is erased."""
        count = len(encoded)
        area = generator.uniform(*self.area, (count, self.attempts)) * self.size**2
        aspect = np.exp(generator.uniform(*np.log(self.aspect), (count, self.attempts)))
        tried = np.stack([np.sqrt(area * aspect), np.sqrt(area / aspect)], axis=2).round()
        fits = (tried <= self.size).all(axis=2)
        extents = tried[np.arange(count), fits.argmax(axis=1)]
        erased = fits.any(axis=1) & (generator.uniform(size=count) < self.probability)
        extents = np.where(erased[:, None], extents, 0)
        starts = np.floor(generator.uniform(size=(count, 2)) * (self.size - extents + 1))
        return np.float32(starts), np.float32(extents)


def aspect_ratios(encoded):
    """Width / height of encoded images: float64 (N,). Reads their headers only.

    Raises ValueError for what is no image, and for one too large for Pillow, which is what reads other headers than
    those of JPEG.
    """
    ratios = np.empty(len(encoded))
    for position, content in enumerate(encoded):
        width, height = _jpeg_size(content) or _image_size(content)
        ratios[position] = width / height
    return ratios


def _jpeg_size(content):
    """(width, height) from a JPEG's frame header, or None where there is none to be found.

    Ten times as fast as `_image_size`, which would be a fifteenth of all the time an image takes.
    """
    content = memoryview(content)
    start = 2
    while start + 9 <= len(content) and content[start] == 0xFF:
        if content[start + 1] in (0xC0, 0xC1, 0xC2):  # baseline, extended, progressive
            height, width = struct.unpack_from(">HH", content, start + 5)
            return (width, height) if width and height else None
        start += 2 + (content[start + 2] << 8 | content[start + 3])
    return None


def _image_size(content):
    with opened(content) as image:
        return image.size
