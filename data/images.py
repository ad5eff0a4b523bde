"""Encoded images and Pillow, which raises whatever happens to it on damaged ones."""

import contextlib
import io
import warnings

from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

__all__ = ["DECODED", "FORMATS", "fault", "opened", "upright_rgb"]

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")  # that photographs are taken in
DECODED = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000")  # of those that Pillow knows, what DALI decodes too

# Pillow warns of an image that is large, on two lines, and refuses one twice as large: the second is enough.
# It warns of odd EXIF data, too, which are no fault of the picture.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", module=r"PIL\.")


@contextlib.contextmanager
def opened(content, formats=None):
    """Pillow's image of an encoded one (bytes or uint8 array), of one of ``formats`` if given.

    Raises ValueError, with the reason in one line, for what is no image, too large or, where it is read inside, broken.
    """
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # other packages set this for the whole process
    try:
        if len(content) == 0:
            raise ValueError("empty")
        with Image.open(io.BytesIO(content), formats=formats) as image:
            yield image
    except UnidentifiedImageError:  # its own message names an object in memory
        raise ValueError(f"no image header of {', '.join(formats) if formats else 'any known format'}") from None
    except MemoryError:
        raise ValueError("too large for the memory") from None
    except Exception as error:
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from None


def upright_rgb(image):
    """Pillow's image in RGB, turned as its EXIF data say; transparency is dropped.

    Raises ValueError for one of more than 8 bits a channel.
    """
    if image.mode.startswith(("I", "F")):
        raise ValueError("more than 8 bits a channel")
    return ImageOps.exif_transpose(image).convert("RGB")


def fault(content):
    """Why DALI cannot decode an encoded image, as far as Pillow can tell: a line, or None."""
    try:
        with opened(content, DECODED) as image:
            image.load()
    except ValueError as error:
        return str(error)
    return None
