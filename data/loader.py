"""The one DALI loader: records in; augmented, normalized batches out, on the device that trains.

Which images form a batch and how each is cropped and mirrored are functions of (seed, epoch, step, shard). DALI is
given the choices with the bytes, and itself only decodes, cuts and normalizes, on a CPU or a GPU.
"""

import ctypes
import functools
import itertools
import re
from collections import namedtuple
from pathlib import Path

import mxnet as mx
import numpy as np
from nvidia.dali import fn, pipeline_def, types

from base.devices import is_out_of_memory
from base.errors import UserError
from data.folders import FolderImages
from data.images import fault
from data.randomness import generator
from data.records import Records

__all__ = ["Batch", "Loader", "LoaderOptions", "Shard", "ShardedLoader"]

Batch = namedtuple("Batch", ["images", "labels", "count", "coordinates"])
Batch.__doc__ = """One device's share of a step.

images : NDArray, float32, (batch_size, 3, size, size), normalized
labels : NDArray, float32, (batch_size,)
count : int
    How many images count, from the first on. Less than batch_size only at the end of a validation.
coordinates : (epoch, step, shard)
    Where in the training the batch stands.
"""


LoaderOptions = namedtuple(
    "LoaderOptions",
    ["batch_size", "seed", "threads", "limit", "label_noise", "accumulate"],
    defaults=[2, None, 0.0, 1],
)
LoaderOptions.__doc__ = """How images are read.

batch_size : int
    Images a batch, for each device.
seed : int
threads : int
    CPU threads that decode, for each device.
limit : int or None
    Only so many images of the set exist: the first ones of records, and of folders some of every class.
label_noise : float
    Share of the training labels that are wrong.
accumulate : int
    Batches a training step, for each device.
"""

Shard = namedtuple("Shard", ["index", "count"], defaults=[0, 1])
Shard.__doc__ = """Which share of a set, of how many."""

WHOLE = Shard()


class Loader:
    """Batches of one shard of a data set, for one device.

    Training: every epoch is a fresh permutation of the whole set, dealt out to the shards so that no image is in two;
    images are cropped, mirrored and coloured at random as the data set says. The last images of a permutation, too few
    for a whole step, are left out of that epoch. Validation: every image once, in order; the last
    batch is filled up with images that do not count. Labels are wrong in training only, and the same ones always.

    Parameters
    ----------
    dataset : data.dataset.Dataset
    split : str
        "train" or "test".
    options : LoaderOptions
    context : mxnet.Context
        Where batches are put; on a GPU, DALI decodes and augments there too.
    training : bool
        Shuffle and augment.
    shard : Shard

    Attributes
    ----------
    steps : int
        Batches an epoch, the same for every shard; in training, those of whole steps.
    num_images : int
        Images in the set, over all shards.

    Raises UserError for records that cannot be read and for a set smaller than a step's batches of all shards.
    """

    def __init__(self, dataset, split, options, context, training, shard=WHOLE):
        self._dataset, self._training = dataset, training
        self._crop = dataset.training_crop if training else dataset.validation_crop
        self._colour, self._erasing = (dataset.colour, dataset.erasing) if training else (None, None)
        path = Path(dataset.records[split])
        self._records = FolderImages(path, options.limit) if path.is_dir() else Records(path, options.limit)
        self._options, self._context, self._shard = options, context, shard
        self.num_images = len(self._records)
        images = options.batch_size * shard.count  # a batch, over all shards
        whole = self.num_images // (images * options.accumulate) * options.accumulate  # of whole steps
        self.steps = whole if training else -(-self.num_images // images)
        if self.steps == 0:
            many = options.accumulate > 1
            raise UserError(
                f"{dataset.name} has {self.num_images} images to train on, too few for "
                f"{f'{options.accumulate} batches' if many else 'a batch'} of {options.batch_size} on each of "
                f"{shard.count} devices: choose a smaller --batch-size{' or --accumulate' if many else ''}"
            )
        self._label_shifts = None
        if training and options.label_noise:
            self._label_shifts = label_shifts(self.num_images, dataset.classes, options.label_noise, options.seed)
        self._order_of = functools.lru_cache(maxsize=2)(self._order)  # DALI reads ahead into the next epoch
        self._pipeline = None
        self._due = None  # (epoch, step) of the batch the pipeline gives next

    def epoch(self, epoch, first_step=0):
        """Iterate over an epoch's `Batch`es from ``first_step`` on. Validation has the same ones every epoch."""
        if not self._training and self._due:
            epoch, _ = self._due  # where DALI has read ahead to
        for step in range(first_step, self.steps):
            if self._due != (epoch, step):
                self._start(epoch, step)
            images = self._run(epoch, step)
            positions, count = self._positions(epoch, step)
            labels = self._labels(positions)
            self._due = self._after(epoch, step)
            labels = mx.nd.array(labels).as_in_context(self._context)  # the engine's copy: the host does not wait
            yield Batch(images, labels, count, (epoch, step, self._shard.index))

    def _start(self, epoch, step):
        self._fed = (epoch, step)
        on_gpu = self._context.device_type == "gpu"
        self._pipeline = image_pipeline(
            source=self._feed,
            dataset=self._dataset,
            changes=(self._crop, self._colour, self._erasing),
            training=self._training,
            decoder="mixed" if on_gpu else "cpu",
            batch_size=self._options.batch_size,
            num_threads=self._options.threads,
            device_id=self._context.device_id if on_gpu else None,
            prefetch_queue_depth=2,
        )
        self._pipeline.build()

    def _labels(self, positions):
        """Labels at ``positions``. Raises UserError where one is no class's number."""
        labels, classes = self._records.labels(positions), self._dataset.classes
        right = (labels >= 0) & (labels < classes) & (labels == np.floor(labels))  # not a number is none of it
        if not right.all():
            wrong = right.argmin()
            raise UserError(
                f"{self._records.name(positions[wrong])} has the label "
                f"{np.format_float_positional(labels[wrong], trim='-')}: "
                f"a label is a whole number from 0 to {classes - 1}, as there are {classes} classes"
            )
        if self._label_shifts is not None:
            labels = (labels + self._label_shifts[positions]) % classes
        return labels

    def _run(self, epoch, step):
        """The images of the pipeline's next batch, which is that of (epoch, step)."""
        try:
            (images,) = self._pipeline.run()
            tensor = images.as_tensor()
        except (RuntimeError, ValueError) as error:
            if is_out_of_memory(error):
                raise
            raise self._explained(error, epoch, step) from None
        return copied(tensor, self._context)

    def _explained(self, error, epoch, step):
        """A `UserError` for what DALI raised, which names no image: one of those fed from (epoch, step) on."""
        while (epoch, step) != self._fed:
            for position in self._positions(epoch, step)[0]:
                (content,) = self._records.encoded([position])
                reason = fault(content)
                if reason:
                    return UserError(f"{self._records.name(position)} cannot be decoded: {reason}")
            epoch, step = self._after(epoch, step)
        reason = re.sub(r".*encountered:\s*(Error in thread \d+: )?(\[\S*\] )*", "", str(error), flags=re.DOTALL)
        reason = reason.strip().partition("\n")[0]
        return UserError(f"a batch of {self._records.path} cannot be decoded: {reason or type(error).__name__}")

    def _feed(self):
        """DALI asks for its next batch: hand it over and move on."""
        epoch, step = self._fed
        self._fed = self._after(epoch, step)
        return self._inputs(epoch, step)

    def _inputs(self, epoch, step):
        """What DALI needs for a batch: encoded images and what was drawn for them."""
        positions, _ = self._positions(epoch, step)
        encoded = self._records.encoded(positions)
        draw = generator(self._options.seed, "augmentation", epoch, step, self._shard.index)
        inputs = [encoded, *self._crop.draw(encoded, draw)]
        if self._training:
            mirrored = draw.integers(0, 2, len(positions), dtype=np.int32)
            inputs.append(mirrored if self._dataset.mirror else np.zeros_like(mirrored))
        if self._colour:
            inputs += self._colour.draw(encoded, draw)
        if self._erasing:
            inputs += self._erasing.draw(encoded, draw)
        return tuple(inputs)

    def _after(self, epoch, step):
        return (epoch, step + 1) if step + 1 < self.steps else (epoch + 1, 0)

    def _order(self, epoch):
        """This shard's positions in the order an epoch reads them."""
        if self._training:
            everything = generator(self._options.seed, "order", epoch).permutation(self.num_images)
        else:
            everything = np.arange(self.num_images)
        return everything[self._shard.index :: self._shard.count]

    def _positions(self, epoch, step):
        """The batch's positions in the records, (batch_size,), and how many of them count."""
        size = self._options.batch_size
        chosen = self._order_of(epoch)[step * size : (step + 1) * size]
        return np.pad(chosen, (0, size - len(chosen))), len(chosen)


class ShardedLoader:
    """One `Loader` for each of this process's devices, going in step.

    Parameters
    ----------
    dataset, split, options, training
        Of every `Loader`.
    contexts : list of mxnet.Context
        This process's devices.
    shard : Shard
        Which process this is, of how many with as many devices each.

    Attributes
    ----------
    dataset : data.dataset.Dataset
    steps : int
        An epoch.
    num_images : int
        Images in the set.
    batch_size : int
        Images a step, over all devices of all workers.

    Raises what `Loader` raises.
    """

    def __init__(self, dataset, split, options, contexts, training, shard=WHOLE):
        count = shard.count * len(contexts)
        self._loaders = [
            Loader(dataset, split, options, context, training, Shard(index, count))
            for index, context in enumerate(contexts, shard.index * len(contexts))
        ]
        self.dataset = dataset
        self._accumulate = options.accumulate if training else 1
        self.num_images = self._loaders[0].num_images
        self.steps = self._loaders[0].steps // self._accumulate
        self.batch_size = options.batch_size * count * self._accumulate

    def epoch(self, epoch, first_step=0):
        """Iterate over an epoch's steps: tuples of one `Batch` for each device, and then of their next ones."""
        batches = [loader.epoch(epoch, first_step * self._accumulate) for loader in self._loaders]
        return itertools.islice(zip(*batches * self._accumulate), self.steps - first_step)


def label_shifts(count, classes, noise, seed):
    """What is added to labels, modulo the classes, so that the share ``noise`` of them is wrong: int (count,).

    A wrong label is any of the others alike (arXiv 1704.06904, section 4.1, "Noisy Label Robustness").

    Raises UserError where there is no other class.
    """
    if classes == 1:
        raise UserError("--label-noise: there is a single class, and so no wrong one")
    wrong, other = generator(seed, "label noise").uniform(size=(count, 2)).T
    return np.where(wrong < noise, 1 + np.floor(other * (classes - 1)), 0)


def copied(tensor, context):
    """The contents of one of DALI's tensors, of float32 and on the same device, as an NDArray.

    A GPU copies on a stream of DALI's, which MXNet's streams do not wait for, and MXNet's engine does not know that
    anything writes the array. So the copy has ended when this returns; DALI's own function for MXNet only begins it.
    What that waits for is DALI's stream and nothing of MXNet's: the array is new, so that nobody can be using it.
    """
    array, pointer = mx.nd.empty(tensor.shape(), ctx=context), ctypes.c_void_p()
    mx.base.check_call(mx.base._LIB.MXNDArrayGetData(array.handle, ctypes.byref(pointer)))
    if context.device_type == "gpu":
        tensor.copy_to_external(pointer, None, non_blocking=False)
    else:
        tensor.copy_to_external(pointer)
    return array


@pipeline_def
def image_pipeline(source, dataset, changes, training, decoder):
    """DALI's part: encoded images to normalized (N, 3, size, size) float32.

    ``changes`` are of `data.augmentation`: a crop, and what changes colours and hides parts, or None.
    """
    crop, colour, erasing = changes
    count = 1 + crop.inputs + training + sum(part.inputs for part in (colour, erasing) if part)
    encoded, *drawn = fn.external_source(source=source, num_outputs=count, batch=True)
    images = crop.decode(encoded, dataset.size, decoder, *drawn[: crop.inputs])
    mirror, mean = 0, list(dataset.mean)
    rectangle = [drawn.pop() for _ in range(erasing.inputs)][::-1] if erasing else []
    if training:
        mirror = drawn[crop.inputs]
    if colour:
        mean, *factors = drawn[crop.inputs + 1 :]
        images = colour.change(images, *factors)
    images = fn.crop_mirror_normalize(
        images, mirror=mirror, mean=mean, std=list(dataset.std), dtype=types.FLOAT, output_layout="CHW"
    )
    return erasing.erase(images, *rectangle) if erasing else images
