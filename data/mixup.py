"""Mixup and label smoothing: a batch in, a batch out.

Both are linear in the targets, rows of class probabilities, so they may follow each other in either order.
"""

from data.randomness import generator

__all__ = ["Mixing", "mixup", "smooth"]


def mixup(images, targets, share):
    """Mix a batch with itself reversed (Zhang et al., arXiv 1710.09412).

    ``share`` of each image and 1 - ``share`` of its partner; targets likewise. Shapes: images (N, C, H, W) and
    targets (N, classes), as they were.
    """
    return share * images + (1 - share) * images.flip(axis=0), share * targets + (1 - share) * targets.flip(axis=0)


def smooth(targets, epsilon):
    """Label smoothing: 1 - epsilon on the class, epsilon / (classes - 1) on each other one (arXiv 1812.01187, 5.2).

    A single class keeps all: there is no other one to give to. Shapes: (N, classes) -> (N, classes), rows that sum
    to 1.
    """
    classes = targets.shape[1]
    if classes == 1:
        return targets
    others = epsilon / (classes - 1)
    return targets * (1 - epsilon - others) + others


class Mixing:
    """Turns batches into what a training step takes: images, class probabilities and what the loss aims at.

    Parameters
    ----------
    classes : int
    alpha : float
        Mixup's lambda is drawn from Beta(alpha, alpha) for every batch; 0 is no mixup.
    mixup_epochs : int
        Epochs with mixup, from the first on; later ones see the images as they are.
    epsilon : float
        Of label smoothing; 0 is none.
    seed : int
    """

    def __init__(self, classes, *, alpha=0.0, mixup_epochs=0, epsilon=0.0, seed=0):
        self._classes, self._alpha, self._mixup_epochs = classes, alpha, mixup_epochs
        self._epsilon, self._seed = epsilon, seed

    def mixes(self, epoch):
        """Whether mixup is on in an epoch."""
        return self._alpha > 0 and epoch < self._mixup_epochs

    def metric_name(self, epoch):
        """What the mean probability that the targets give to the predicted classes is called in an epoch.

        Without mixup each target is one class, and that mean is the accuracy. With mixup a prediction scores the share
        its class has in the mixture.
        """
        return "mixed accuracy" if self.mixes(epoch) else "accuracy"

    def __call__(self, batch):
        """(images (N, C, H, W), targets (N, classes), smoothed targets (N, classes)) of a `data.loader.Batch`."""
        images, targets = batch.images, batch.labels.one_hot(self._classes)
        epoch = batch.place[0]
        if self.mixes(epoch):
            share = generator(self._seed, "mixup", *batch.place).beta(self._alpha, self._alpha)
            images, targets = mixup(images, targets, float(share))
        return images, targets, smooth(targets, self._epsilon)
