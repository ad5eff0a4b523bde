"""Parameters on disk: the last epoch's, the best one's, and every so many epochs'."""

import os

__all__ = ["Checkpoints"]


class Checkpoints:
    """Writes a run's parameters to ``folder``: last.params, best.params and epoch-NNNN.params.

    Parameters
    ----------
    folder : path
        Exists.
    save_period : int
        Epochs between numbered files; 0 is none.

    Attributes
    ----------
    best_accuracy, best_epoch : float, int
        Of the epoch whose parameters best.params holds.
    """

    def __init__(self, folder, save_period):
        self._folder, self._save_period = folder, save_period
        self.best_accuracy, self.best_epoch = -1.0, None

    def save(self, net, epoch, accuracy):
        """Save what an epoch ended with. Epochs count from 1; ``accuracy`` is the validation's."""
        self._write(net, "last.params")
        if accuracy > self.best_accuracy:
            self.best_accuracy, self.best_epoch = accuracy, epoch
            self._write(net, "best.params")
        if self._save_period and epoch % self._save_period == 0:
            self._write(net, f"epoch-{epoch:04d}.params")

    def _write(self, net, name):
        """Write under a temporary name, then rename: NAME holds the old parameters or the new ones, never a part."""
        temporary = self._folder / (name + ".new")
        net.save_parameters(str(temporary))
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        temporary.replace(self._folder / name)
