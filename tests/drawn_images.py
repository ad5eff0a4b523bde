"""Small pictures of this project's own, drawn in the place of CIFAR and ImageNet where these are not at hand.

They are coloured clouds with the data sets' mean and deviation, in their files' layout: good for reading, training and
evaluating, not for learning what is in real images.
"""

import numpy as np
from PIL import Image

__all__ = ["draw_cifar", "draw_photographs"]

MEAN, DEVIATION = (124.0, 119.0, 109.0), (61.0, 60.0, 63.0)  # between CIFAR's and ImageNet's
GREY = 3  # photographs without colours, as there are in ImageNet


def clouds(draw, width, height):
    """A uint8 image (height, width, 3) of a few soft blots."""
    blots = draw.normal(size=(5, 6, 3))
    blots = (blots - blots.mean(axis=(0, 1))) / blots.std(axis=(0, 1))
    values = (blots * DEVIATION * 1.25 + MEAN).clip(0, 255).round().astype(np.uint8)
    return np.asarray(Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC))


def draw_photographs(folder, count=200):
    """Write ``count`` JPEGs of different sizes, each in a class folder of its own as ImageNet names them."""
    for number in range(count):
        draw = np.random.default_rng(number)
        name = f"n{number:08d}"
        image = Image.fromarray(clouds(draw, *draw.integers(90, 200, 2)))
        if number < GREY:
            image = image.convert("L")
        (folder / name).mkdir(parents=True)
        image.save(folder / name / f"{name}_drawn.JPEG", quality=90)


def draw_cifar(folder, train=500, test=100):
    """Write images of 32x32 as CIFAR-10's binary files: rows of a label and of channels, as many of each class."""
    draw = np.random.default_rng(0)

    def rows(count):
        labels = draw.permutation(np.arange(count) % 10)
        return np.stack([np.append(label, clouds(draw, 32, 32).transpose(2, 0, 1)) for label in labels]).astype(
            np.uint8
        )

    folder = folder / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for number, part in enumerate(np.array_split(rows(train), 5), start=1):
        part.tofile(folder / f"data_batch_{number}.bin")
    rows(test).tofile(folder / "test_batch.bin")
    classes = "airplane automobile bird cat deer dog frog horse ship truck"
    (folder / "batches.meta.txt").write_text(classes.replace(" ", "\n") + "\n")
