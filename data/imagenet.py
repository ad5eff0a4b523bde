"""ImageNet, or other photographs by class: a `Dataset` from RecordIO or class folders, and the first from the second.

    python -m data.imagenet DIR OUT

reads DIR/train/CLASS/IMAGE and DIR/val/CLASS/IMAGE and writes OUT/train.rec and OUT/val.rec with their .idx files, in
the layout of MXNet's im2rec; OUT/classes.txt, the classes' names in the order of their labels; and OUT/changed.txt,
which names every image that was converted or skipped.
"""

import gc
import io
import multiprocessing
import os
import signal
from collections import Counter, deque, namedtuple
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
from PIL import Image

from base.errors import UserError, run_command
from base.files import open_regular, reading
from base.flags import HelpFormatter, OneLineParser, bounded_int, fraction_below_one, positive_int
from base.processes import die_with
from base.text import one_line
from data.augmentation import CentreWindow, ColourJitter, RandomWindow
from data.dataset import Dataset
from data.folders import list_images
from data.images import FORMATS, opened, upright_rgb
from data.records import LARGEST_IMAGE, locked, replacement, write_encoded

__all__ = ["MEAN", "STD", "JpegOptions", "as_jpeg", "open_imagenet", "prepare"]

ORIENTATION = 0x0112  # EXIF tag; 1 is upright
SHOWN = 5  # file names in a message
CLASSES, CHANGED = "classes.txt", "changed.txt"
TEXT = {"encoding": "utf-8", "errors": "surrogateescape"}  # of both: any file name, byte for byte, in any locale
PER_CORE = 4  # processes that convert, at most

JpegOptions = namedtuple("JpegOptions", ["short_side", "quality"], defaults=[None, 95])
JpegOptions.__doc__ = """How `as_jpeg` writes an image.

short_side : int, optional
    Larger images are shrunk until their short side has so many pixels.
quality : int
    Of what is encoded anew, 1 to 100.
"""

UNCHANGED_SIZE = JpegOptions()

# Mean and standard deviation of the training images' channels, the figures in common use times 255.
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def open_imagenet(data_dir, classes=None, *, size=224, crop_ratio=0.875, jitter=0.0, lighting=0.1):
    """Photographs as a `Dataset`, from ``data_dir``/train.rec and val.rec or from class folders in its train/ and val/.

    Records may be those of this module or of MXNet's im2rec. Folders are read as they are, which suits small sets.

    Parameters
    ----------
    data_dir : path
    classes : int, optional
        Number of classes; without it that of classes.txt or of the folders, and 1000 for records without that list.
    size : int
        Height and width the network sees, pixels.
    crop_ratio : float
        Validation shrinks an image's short side to ``size / crop_ratio`` and takes the centre.
    jitter, lighting
        Of `data.augmentation.ColourJitter`, in training.

    Raises UserError where neither is there, and where ``classes`` contradicts what is.
    """
    data_dir = Path(data_dir)
    records = {"train": data_dir / "train.rec", "test": data_dir / "val.rec"}
    if records["train"].exists():
        names = _listed_classes(data_dir / CLASSES)
    elif (data_dir / "train").is_dir():
        records = {"train": data_dir / "train", "test": data_dir / "val"}
        names, val_names = (list_images(folder)[0] for folder in records.values())
        if names != val_names:
            raise UserError(f"{data_dir}: train/ and val/ have different classes")
    else:
        raise UserError(f"{data_dir} has neither train.rec nor train/ in it: name ImageNet's folder with --data-dir")
    found = len(names) if names else classes or 1000
    if classes not in (None, found):
        raise UserError(f"--classes {classes}: {data_dir} has {found} classes")
    views = {
        "training_crop": RandomWindow(),
        "validation_crop": CentreWindow(crop_ratio),
        "colour": ColourJitter(MEAN, jitter, lighting),
    }
    return Dataset("imagenet", found, records, size, MEAN, STD, mirror=True, top5=True, class_names=names, **views)


def _listed_classes(path):
    """The classes that a list of them names, or None where there is no list."""
    with reading(path):
        try:
            with open_regular(path) as file:
                names = file.read().decode(**TEXT).removeprefix("\ufeff").splitlines()  # which some editors put there
        except FileNotFoundError:
            return None
    if not all(names or [""]):
        raise UserError(f"{path} is empty, or a line of it is: it names the classes, one a line")
    return names


def as_jpeg(content, options=UNCHANGED_SIZE):
    """Any image file's content as that of an upright JPEG in RGB, and what had to be done to it.

    A JPEG that is one already is returned as it is, to the byte. Transparency is dropped, and of several frames only
    the first is taken.

    Parameters
    ----------
    content : bytes
    options : JpegOptions

    Returns
    -------
    (bytes, list of str)
        The second says what was unusual about the image, e.g. ["PNG", "alpha"]; being large is not.

    Raises ValueError for a file that is empty, no image, or broken.
    """
    with opened(content, FORMATS) as image:
        image.load()
        unusual = _unusual(image)
        scale = options.short_side / min(image.size) if options.short_side else 1
        if not unusual and image.mode == "RGB" and scale >= 1:
            return content, unusual
        image = upright_rgb(image)
        if scale < 1:
            size = [max(options.short_side, round(side * scale)) for side in image.size]
            image = image.resize(size, Image.Resampling.BICUBIC)
        file = io.BytesIO()
        image.save(file, "JPEG", quality=options.quality)
        return file.getvalue(), unusual


def _unusual(image):
    """What sets an image apart from an upright JPEG in RGB, in words."""
    unusual = [] if image.format == "JPEG" else [image.format]
    if image.mode in ("1", "L", "LA"):
        unusual.append("grey")
    elif image.mode not in ("RGB", "RGBA", "P"):
        unusual.append(image.mode)
    if image.mode in ("LA", "RGBA") or "transparency" in image.info:
        unusual.append("alpha")
    if image.getexif().get(ORIENTATION, 1) != 1:
        unusual.append("EXIF orientation")
    return unusual


def prepare(folder, out, *, jpeg=UNCHANGED_SIZE, val_share=None, skip_broken=False, workers=1):
    """Write the images of class folders as RecordIO, as this module's head says. Returns a summary in one line.

    Parameters
    ----------
    folder, out : path
        ``out`` appears as a whole or not at all, and must not exist or be empty.
    jpeg : JpegOptions
    val_share : float, optional
        Share of every class to validate on, for a ``folder`` without val/; its classes may lie in it directly.
    skip_broken : bool
        Leave out images that cannot be decoded instead of refusing them all.
    workers : int
        Processes that decode and encode, where there are as many images, and at most 4 a core.

    Raises UserError for folders that are not as expected, broken images, and an ``out`` that cannot be written.
    """
    folder, out = Path(folder), Path(out)
    classes, splits = _splits(folder, val_share)
    found = _Findings(folder)
    try:
        with locked(out):
            if out.exists() and (not out.is_dir() or any(out.iterdir())):
                raise UserError(f"{out} exists already: remove it or name another folder")
            with replacement(out) as new:
                written = {}
                for split, (paths, labels) in splits.items():
                    results = _converted(paths, jpeg, workers)
                    written[split] = write_encoded(
                        new / f"{split}.rec", found.pairs(paths, labels, results), len(paths)
                    )
                found.check(skip_broken)
                if not all(written.values()):
                    raise UserError(f"not one image in {folder} can be decoded: {_listed(found.broken)}")
                (new / CLASSES).write_text("".join(f"{name}\n" for name in classes), **TEXT)
                (new / CHANGED).write_text("".join(f"{line}\n" for line in found.changed), **TEXT)
    except BrokenProcessPool:
        raise UserError("a process that converts images was killed; fewer --workers need less memory") from None
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from None
    images = f"{written['train']:,} images to train on, {written['val']:,} to validate, {len(classes):,} classes"
    return f"{out}: {images}{found.summary()}"


class _Findings:
    """What was unusual about the images of a folder.

    Attributes
    ----------
    changed : list of str
        A line for every image that was converted or skipped.
    broken : list of str
        Names of those that cannot be decoded, each with the reason.
    """

    def __init__(self, folder):
        self.changed, self.broken = [], []
        self._folder, self._counts = folder, Counter()

    def pairs(self, paths, labels, results):
        """(JPEG, label) of every image that can be decoded, from what `_convert` returned for it."""
        for path, label, (content, notes) in zip(paths, labels, results):
            name = one_line(os.path.relpath(path, self._folder))
            if content is None:
                self.broken.append(f"{name} ({notes[0]})")
                self.changed.append(f"{name}: skipped, {notes[0]}")
            else:
                if notes:
                    self.changed.append(f"{name}: {', '.join(notes)}")
                    self._counts.update(notes)
                yield content, label

    def check(self, skip_broken):
        """Raise UserError where an image is broken and ``skip_broken`` is False."""
        if self.broken and not skip_broken:
            raise UserError(
                f"{_listed(self.broken)} cannot be decoded: nothing was written; mend or remove "
                f"{'it' if len(self.broken) == 1 else 'them'}, or add --skip-broken"
            )

    def summary(self):
        """What was converted and skipped, as the end of a line."""
        converted = ", ".join(f"{count} {note}" for note, count in self._counts.most_common())
        skipped = f"; skipped {_listed(self.broken)}" if self.broken else ""
        return (f"; converted: {converted}" if converted else "") + skipped


def _splits(folder, val_share):
    """The classes, and {"train": (paths, labels), "val": (paths, labels)}, in an order fixed for good but random."""
    has_folders = (folder / "train").is_dir(), (folder / "val").is_dir()
    if has_folders == (True, True):
        if val_share is not None:
            raise UserError(f"{folder / 'val'} exists: --val-share would take more images to validate on")
        classes, *train = list_images(folder / "train")
        val_classes, val_paths, val_labels = list_images(folder / "val")
        unknown = set(val_classes) - set(classes)
        if unknown:
            raise UserError(f"{folder / 'val'} has classes that train/ does not have, {min(unknown)} among them")
        val = val_paths, [classes.index(val_classes[label]) for label in val_labels]
        splits = {"train": train, "val": val}
    elif val_share is None:
        raise UserError(
            f"{folder} has no train/ and val/ in it: add --val-share SHARE to hold out a part of its images"
        )
    elif has_folders == (False, True):
        raise UserError(f"{folder} has val/ and no train/ in it: what --val-share is a share of is to be in train/")
    else:
        classes, paths, labels = list_images(folder / "train" if has_folders[0] else folder)
        # every 1/share-th image of the list, which is sorted by class: the same share of each
        steps = np.floor(np.arange(len(paths) + 1) * val_share + 1e-9)
        held_out = np.diff(steps) > 0
        splits = {}
        for split, chosen in (("train", ~held_out), ("val", held_out)):
            splits[split] = [paths[i] for i in np.flatnonzero(chosen)], [labels[i] for i in np.flatnonzero(chosen)]
        if not held_out.any() or held_out.all():
            raise UserError(f"--val-share {val_share:g} of {len(paths)} images leaves nothing to train or validate on")
    for split, (paths, labels) in splits.items():
        order = np.random.default_rng(0).permutation(len(paths))
        splits[split] = [paths[i] for i in order], [labels[i] for i in order]
    return classes, splits


def _converted(paths, options, workers):
    """`_convert` of every path, in their order, by several processes that are never far ahead of what is taken."""
    workers = max(1, min(workers, len(paths), PER_CORE * len(os.sched_getaffinity(0))))
    ahead = 16 * workers
    with ProcessPoolExecutor(
        workers, multiprocessing.get_context("fork"), _follow_parent, initargs=(os.getpid(),)
    ) as executor:
        pending = deque()
        try:
            for path in paths:
                pending.append(executor.submit(_convert, path, options))
                if len(pending) > ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            executor.shutdown(cancel_futures=True)


def _follow_parent(parent):
    """Leave Ctrl-C, SIGTERM and SIGHUP to process number ``parent``, and die when it dies."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    gc.freeze()  # collecting a DALI pipeline of the parent would end this process, which lacks its threads
    die_with(parent)


def _convert(path, options):
    """(JPEG, what was unusual), or (None, [what is wrong])."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > LARGEST_IMAGE:
                raise ValueError(f"{size:,} bytes are too many for a record")
            return as_jpeg(file.read(), options)
    except (OSError, ValueError, MemoryError) as error:
        return None, [getattr(error, "strerror", None) or str(error) or "too large for the memory"]


def _listed(names):
    shown = ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else "")
    return f"{len(names):,} broken image{'s' if len(names) > 1 else ''}: {shown}"


def main():
    parser = OneLineParser(
        prog="python -m data.imagenet",
        description="Write photographs in class folders as RecordIO for training.",
        formatter_class=HelpFormatter,
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help="holds train/CLASS/IMAGE and val/CLASS/IMAGE")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder of train.rec and val.rec, to be made")
    parser.add_argument(
        "--resize", type=positive_int, metavar="SHORT", help="shrink larger images to a short side of SHORT pixels"
    )
    parser.add_argument(
        "--quality", type=bounded_int(100), default=95, help="of JPEGs that have to be encoded anew, 1 to 100"
    )
    parser.add_argument(
        "--val-share",
        type=fraction_below_one,
        metavar="SHARE",
        help="share of every class to validate on, where DIR has no val/",
    )
    parser.add_argument("--skip-broken", action="store_true", help="leave out images that cannot be decoded")
    parser.add_argument(
        "--workers",
        "-j",
        type=positive_int,
        default=len(os.sched_getaffinity(0)),
        help=f"processes that convert; not more than there are images, nor than {PER_CORE} a core",
    )
    args = parser.parse_args()
    jpeg = JpegOptions(args.resize, args.quality)
    options = {"val_share": args.val_share, "skip_broken": args.skip_broken, "workers": args.workers}
    print(prepare(args.folder, args.out, jpeg=jpeg, **options))


if __name__ == "__main__":
    run_command(main)
