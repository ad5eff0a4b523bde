"""What the training scripts know of a data set."""

from collections import namedtuple

from data.augmentation import PaddedCrop, WholeImage

__all__ = ["Dataset"]

Dataset = namedtuple(
    "Dataset",
    [
        *("name", "classes", "records", "size", "mean", "std", "mirror"),
        *("training_crop", "validation_crop", "colour", "top5", "class_names", "erasing"),
    ],
    defaults=[PaddedCrop(4), WholeImage(), None, False, None, None],  # as the paper's CIFAR recipe has it (section 4.1)
)
Dataset.__doc__ = """A data set as records.

name : str
classes : int
records : dict
    {"train": path, "test": path} of .rec files or folders of class folders.
size : int
    Height and width the network sees, pixels.
mean, std : 3 floats each
    Of the training images' channels (RGB), on the scale 0 to 255.
mirror : bool
    Whether a mirrored image keeps its class.
training_crop, validation_crop : data.augmentation.PaddedCrop, WholeImage, RandomWindow or CentreWindow
    What of an image the network sees.
colour : data.augmentation.ColourJitter, optional
    How colours vary in training.
top5 : bool
    Whether a label among the first five guesses is worth a column in the CSV.
class_names : sequence of str, optional
    By label; without it the classes are called by their numbers.
erasing : data.augmentation.Cutout or RandomErasing, optional
    What of a training image is hidden.
"""
