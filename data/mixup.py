"""Mixup and label smoothing: a batch in, what a training step takes out.

Both are linear in the targets, rows of class probabilities, so they may follow each other in either order.
"""

from collections import namedtuple

from data.randomness import generator

__all__ = ["Example", "TargetTransform", "mixup", "smooth_labels"]


def mixup(images, targets, share):
    """Mix a batch with itself reversed (Zhang et al., arXiv 1710.09412).

    ``share`` of each image and 1 - ``share`` of its partner; targets likewise. Shapes: images (N, C, H, W) and
    targets (N, classes), as they were.
    """
    return share * images + (1 - share) * images.flip(axis=0), share * targets + (1 - share) * targets.flip(axis=0)


def smooth_labels(targets, epsilon):
    """Label smoothing: 1 - epsilon on the class, epsilon / (classes - 1) on each other one (arXiv 1812.01187, 5.2).

    A single class keeps all: there is no other one to give to. Shapes: (N, classes) -> (N, classes), rows that sum
    to 1.
    """
    classes = targets.shape[1]
    if classes == 1:
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
    alpha : float
        Mixup's lambda is drawn from Beta(alpha, alpha) for every batch.
    mixup_epochs : int
        Epochs with mixup, from the first on; later ones see the images as they are.
    epsilon : float
        Of label smoothing; 0 is none.
    seed : int
    """

    def __init__(self, classes, alpha=1.0, mixup_epochs=0, epsilon=0.0, seed=0):
        self._classes, self._alpha, self._mixup_epochs = classes, alpha, mixup_epochs
        self._epsilon, self._seed = epsilon, seed

    def mixes(self, epoch):
        """Whether mixup is on in an epoch."""
        return epoch < self._mixup_epochs

    def metric_name(self, epoch):
        """What the mean probability that the targets give to the predicted classes is called in an epoch.

        Without mixup each target is one class, and that mean is the accuracy. With mixup a prediction scores the share
        its class has in the mixture.
        """
        return "mixed accuracy" if self.mixes(epoch) else "accuracy"

    def __call__(self, batch):
        """The `Example` of a `data.loader.Batch`."""
        images, targets = batch.images, batch.labels.one_hot(self._classes)
        epoch, *_ = batch.coordinates
        if self.mixes(epoch):
            share = generator(self._seed, "mixup", *batch.coordinates).beta(self._alpha, self._alpha)
            images, targets = mixup(images, targets, float(share))
        return Example(images, targets, smooth_labels(targets, self._epsilon))
