"""Pictures of what a network attends to in its images."""

import os
from itertools import chain, count
from pathlib import Path

from base.devices import in_own_thread
from base.errors import UserError
from base.files import writing
from model.attention import AttentionMaps
from training.pictures import as_array, draw_channels, draw_figure_1, draw_masks, save_picture, verdict
from training.prediction import batch_examples, classify, network_input

__all__ = ["AttentionArtist", "attention_overview", "check_folders_apart", "picture_of_batch"]

BATCH = 8  # images whose maps are in memory at a time
WATCHED = 6  # images in the pictures of a training
OVERVIEW = 12  # images in the overview at most: more are too small to see


def masks_of(net, images):
    """The soft masks of all attention modules, {module: numpy (N, channels, h, w)}, of a batch."""
    return {name: maps.mask.asnumpy() for name, maps in net.attention_masks(images).items()}


def verdicts(net, images, description, examples):
    """What a network says of each image of a batch, and what is true where that is known: captions, a list of str."""
    names, captions = description.classes, []
    for row, example in zip(classify(net, images), examples):
        true = None if example.true is None else names[example.true]
        captions.append(verdict(names[row.argmax()], row.max(), true))
    return captions


def attention_overview(net, description, examples):
    """A figure of images beside their masks, a row for each of at most `OVERVIEW` of them."""
    examples = examples[:OVERVIEW]
    views = [example.view for example in examples]
    images = network_input(net, views, description)
    return draw_masks(views, masks_of(net, images), verdicts(net, images, description, examples))


@in_own_thread
def picture_of_batch(net, description, batch, dataset):
    """The pixels of `attention_overview` for the first images of a `data.loader.Batch` of a data set: (H, W, 3)."""
    return as_array(attention_overview(net, description, batch_examples(batch, dataset)[:WATCHED]))


def check_folders_apart(pictures, named):
    """Raise UserError where a folder for pictures is in one of those named as images, which would be read as such."""
    folder = Path(os.path.realpath(pictures))
    for path in map(os.path.realpath, filter(os.path.isdir, named)):
        if Path(path) in (folder, *folder.parents):
            raise UserError(f"{pictures} is in the folder of the images: choose another for what is drawn")


class AttentionArtist:
    """Draws what a network attends to into a folder, which is made if it is not there.

    Parameters
    ----------
    net : AttentionNet
        With its parameters.
    description : training.network_file.NetworkDescription
    folder : pathlib.Path

    Raises UserError, as its methods do, where the folder cannot be written, and for a network without masks.
    """

    def __init__(self, net, description, folder):
        if not description.attends:
            raise UserError("this network has no masks: there is nothing to see of its attention")
        self._net, self._description, self._folder = net, description, folder
        self._taken = {"overview"}  # pictures' names
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)

    def overview(self, examples):
        """Write `attention_overview` as overview-masks.png. Returns its path."""
        return self._saved(attention_overview(self._net, self._description, examples), "overview-masks")

    def each(self, examples, features):
        """Write NAME-masks.png of every `Example` and, if ``features``, NAME-features.png. Yields their paths."""
        for first in range(0, len(examples), BATCH):
            some = examples[first : first + BATCH]
            images = network_input(self._net, [example.view for example in some], self._description)
            maps = {
                name: [part.asnumpy() for part in parts] for name, parts in self._net.attention_masks(images).items()
            }
            captions = verdicts(self._net, images, self._description, some)
            for place, (example, caption) in enumerate(zip(some, captions)):
                own = {name: AttentionMaps(*(part[place] for part in parts)) for name, parts in maps.items()}
                stem = self._stem(example.name)
                masks = {name: three.mask for name, three in own.items()}
                yield self._saved(draw_channels(example.view, masks, caption), f"{stem}-masks")
                if features:
                    yield self._saved(draw_figure_1(example.view, own, caption), f"{stem}-features")

    def _saved(self, figure, name):
        path = self._folder / f"{name}.png"
        save_picture(figure, path)
        return path

    def _stem(self, name):
        """What to call the pictures of a file: its name without suffix, and _2, _3 ... where that has come before."""
        stem = Path(name).stem
        candidates = chain([stem], (f"{stem}_{number}" for number in count(2)))
        chosen = next(candidate for candidate in candidates if candidate not in self._taken)
        self._taken.add(chosen)
        return chosen
