"""Parameters in MXNet's format, to use a network elsewhere: the last epoch's, the best one's, every so many epochs'."""

import os
import shutil

import mxnet as mx

from base.devices import in_own_thread
from base.files import fsync, writing

__all__ = ["Exports"]


class Exports:
    """Writes a run's parameters to ``folder``: last.params, best.params and epoch-NNNN.params, in float32 always.

    Parameters
    ----------
    folder : pathlib.Path
        Exists.
    save_period : int
        Epochs between numbered files; 0 is none.
    """

    def __init__(self, folder, save_period):
        self._folder, self._save_period = folder, save_period

    @in_own_thread
    def save(self, net, epoch, best_epoch):
        """Save what an epoch ended with, all names that are due to it. Epochs count from 1."""
        names = ["last.params"]
        if epoch == best_epoch:
            names.append("best.params")
        if self._save_period and epoch % self._save_period == 0:
            names.append(f"epoch-{epoch:04d}.params")
        # MXNet's own writer leaves a short file on a full disk and says nothing, so it writes to memory.
        with open(os.memfd_create("params"), "w+b") as memory:
            mx.nd.save(f"/proc/self/fd/{memory.fileno()}", parameters_of(net))
            for name in names:
                memory.seek(0)
                self._write(memory, self._folder / name)

    @staticmethod
    def _write(memory, path):
        """Write under another name, then rename: ``path`` holds the old parameters or the new ones, never a part."""
        temporary = path.with_name(path.name + ".new")
        with writing(path):
            try:
                with open(temporary, "wb") as file:
                    shutil.copyfileobj(memory, file)
                fsync(temporary)
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)


def parameters_of(net):
    """A network's parameters as its ``save_parameters`` has them, {name: NDArray}, in float32 whatever its own type.

    So they load into a network that nobody has cast.
    """
    named = net._collect_params_with_prefix()
    return {name: parameter._reduce().astype("float32", copy=False) for name, parameter in named.items()}
