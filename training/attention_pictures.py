"""Pictures of what a network attends to in its images."""

from pathlib import Path

from base.devices import in_own_thread
from model.attention import AttentionMaps
from training.pictures import as_array, draw_channels, draw_figure_1, draw_masks, save_picture, verdict
from training.prediction import batch_examples, classify, network_input

__all__ = ["attention_overview", "draw_all", "masks_of", "picture_of_batch", "verdicts"]

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


def draw_all(net, description, examples, folder):
    """Write masks.png of all images, NAME-masks.png and NAME-features.png of each. Yields the paths.

    Parameters
    ----------
    net : AttentionNet
        With its parameters.
    description : training.network_file.NetworkDescription
    examples : list of training.prediction.Example
    folder : pathlib.Path
        Exists.

    Raises UserError where a picture cannot be written.
    """
    yield _saved(attention_overview(net, description, examples), folder / "masks.png")
    stems = _stems([example.name for example in examples])
    for first in range(0, len(examples), BATCH):
        some = examples[first : first + BATCH]
        images = network_input(net, [example.view for example in some], description)
        maps = {name: [part.asnumpy() for part in parts] for name, parts in net.attention_masks(images).items()}
        captions = verdicts(net, images, description, some)
        for place, (example, caption) in enumerate(zip(some, captions)):
            own = {name: AttentionMaps(*(part[place] for part in parts)) for name, parts in maps.items()}
            masks = {name: three.mask for name, three in own.items()}
            stem = stems[first + place]
            yield _saved(draw_channels(example.view, masks, caption), folder / f"{stem}-masks.png")
            yield _saved(draw_figure_1(example.view, own, caption), folder / f"{stem}-features.png")


def _saved(figure, path):
    save_picture(figure, path)
    return path


def _stems(names):
    """What to call the pictures of files: their names without suffix, and _2, _3 ... where one has come before."""
    stems, taken = [], {"masks"}
    for name in names:
        stem, number = Path(name).stem, 2
        candidate = stem
        while candidate in taken:
            candidate, number = f"{stem}_{number}", number + 1
        taken.add(candidate)
        stems.append(candidate)
    return stems
