"""Mixup, CutMix and label smoothing: a batch in, what a training step takes out.

All are linear in the targets, rows of class probabilities, so that smoothing may come before or after mixing.
"""

import math
from collections import namedtuple

from data.randomness import generator

__all__ = ["Example", "TargetTransform", "cutmix", "mixup", "smooth_labels"]


def mixup(images, targets, share):
    """Mix a batch with itself reversed (Zhang et al., arXiv 1710.09412).

    ``share`` of each image and 1 - ``share`` of its partner; targets likewise. Shapes: images (N, C, H, W) and
    targets (N, classes), as they were.
    """
    return share * images + (1 - share) * images.flip(axis=0), share * targets + (1 - share) * targets.flip(axis=0)


def cutmix(images, targets, share, draw):
    """Replace a rectangle of each image by its partner's in the reversed batch (Yun et al., arXiv 1905.04899).

    The rectangle has the images' aspect ratio and the area 1 - ``share`` of theirs, around any pixel; where it sticks
    out it is cut off, and the targets are mixed by the area that is left. Shapes: as for `mixup`.

    Parameters
    ----------
    share : float
        From 0 to 1.
    draw : numpy.random.Generator
        Of the rectangle's centre.
    """
    window = []
    for length in images.shape[2:]:
        extent, centre = int(length * math.sqrt(1 - share)), int(draw.integers(length))
        window.append(slice(max(0, centre - extent // 2), min(length, centre - extent // 2 + extent)))
    rows, columns = window
    area = (rows.stop - rows.start) * (columns.stop - columns.start)
    if area:
        images = images.copy()
        images[:, :, rows, columns] = images[:, :, rows, columns].flip(axis=0)
    kept = 1 - area / (images.shape[2] * images.shape[3])
    return images, kept * targets + (1 - kept) * targets.flip(axis=0)


def smooth_labels(targets, epsilon):
    """Label smoothing: 1 - epsilon on the class, epsilon / (classes - 1) on each other one (arXiv 1812.01187, 5.2).

    A single class keeps all: there is no other one to give to. Shapes: (N, classes) -> (N, classes), rows that sum
    to 1.
    """
    classes = targets.shape[1]
    if classes == 1 or not epsilon:
        return targets
    others = epsilon / (classes - 1)
    return targets * (1 - epsilon - others) + others


Example = namedtuple("Example", ["images", "targets", "smoothed"])
Example.__doc__ = """What a training step takes from one device's batch.

images : NDArray, (N, C, H, W)
targets : NDArray, (N, classes)
    Class probabilities, rows that sum to 1.
smoothed : NDArray, (N, classes)
    The same after label smoothing, which is what the loss aims at.
"""


class TargetTransform:
    """Turns batches into `Example`s.

    Parameters
    ----------
    classes : int
    alpha, cutmix_alpha : float
        The shares of mixup and of CutMix are drawn from Beta(alpha, alpha) for every batch; 0 is none of it. Where both
        are on, each batch has one of them, either alike.
    mixup_epochs : int
        Epochs with either, from the first on; later ones see the images as they are.
    epsilon : float
        Of label smoothing; 0 is none.
    seed : int
    """

    def __init__(self, classes, alpha=1.0, cutmix_alpha=0.0, mixup_epochs=0, epsilon=0.0, seed=0):
        self._classes, self._alpha, self._cutmix_alpha = classes, alpha, cutmix_alpha
        self._mixup_epochs = mixup_epochs if alpha or cutmix_alpha else 0
        self._epsilon, self._seed = epsilon, seed

    def mixes(self, epoch):
        """Whether images are mixed in an epoch."""
        return epoch < self._mixup_epochs

    def metric_name(self, epoch):
        """What the mean probability that the targets give to the predicted classes is called in an epoch.

        Without mixing each target is one class, and that mean is the accuracy. With it a prediction scores the share
        its class has in the mixture.
        """
        return "mixed accuracy" if self.mixes(epoch) else "accuracy"

    def __call__(self, batch):
        """The `Example` of a `data.loader.Batch`."""
        images, targets = batch.images, batch.labels.one_hot(self._classes)
        epoch, *_ = batch.coordinates
        if self.mixes(epoch):
            draw = generator(self._seed, "mixup", *batch.coordinates)
            cuts = self._cutmix_alpha > 0 and not (self._alpha and draw.integers(2))
            alpha = self._cutmix_alpha if cuts else self._alpha
            share = float(draw.beta(alpha, alpha))
            images, targets = cutmix(images, targets, share, draw) if cuts else mixup(images, targets, share)
        return Example(images, targets, smooth_labels(targets, self._epsilon))
