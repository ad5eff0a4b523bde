"""Parameters in MXNet's format, to use a network elsewhere: the last epoch's, the best one's, every so many epochs'."""

import mxnet as mx

from base.devices import in_own_thread
from base.files import file_digest, free_name, write_whole, writing
from training.network_file import NetworkFile
from training.params_format import saved_in_memory
from training.run.files import ABANDONED

__all__ = ["Exports", "parameters_of", "write_parameters"]


class Exports:
    """Writes a run's parameters to ``folder``: last.params, best.params and epoch-NNNN.params, in float32 always.

    The average of the weights has last-ema.params and so on. What they are of goes to network.json beside them.

    Parameters
    ----------
    folder : pathlib.Path
        Exists.
    save_period : int
        Epochs between numbered files; 0 is none.
    description : training.network_file.NetworkDescription
    """

    def __init__(self, folder, save_period, description):
        self._folder, self._save_period = folder, save_period
        self._network_file = NetworkFile(folder, description)

    def set_aside_after(self, epoch):
        """Rename the best parameters of a continuation that was given up: those of epochs later than ``epoch``.

        The run that goes on from there may come to others, and to no better ones. Returns a line for each file.
        """
        lines = []
        for name, later in self._network_file.later_than(epoch).items():
            path = self._folder / name
            if name.startswith("best") and path.exists():
                aside = free_name(self._folder, f"{ABANDONED}epoch-{later:04d}-{path.stem}", path.suffix)
                self._network_file.name_anew(name, aside)
                with writing(path):
                    path.rename(path.with_name(aside))
                lines.append(f"{path} is of epoch {later} of a continuation that was given up: it is {aside} now")
        return lines

    @in_own_thread
    def save(self, net, epoch, best_epoch, accuracy, suffix=""):
        """Save what an epoch ended with, all names that are due to it.

        Parameters
        ----------
        net : Block
        epoch, best_epoch : int
            Count from 1.
        accuracy : float or None
            Of the epoch's validation, if known.
        suffix : str
            Of the names, before ".params".

        Raises UserError where a file cannot be written.
        """
        stems = ["last"]
        if epoch == best_epoch:
            stems.append("best")
        if self._save_period and epoch % self._save_period == 0:
            stems.append(f"epoch-{epoch:04d}")
        names = [f"{stem}{suffix}.params" for stem in stems]
        write_parameters(self._folder, parameters_of(net), self._network_file, names, (epoch, accuracy))


def write_parameters(folder, arrays, network_file, names, figures):
    """Write arrays as .params files, after their entry in network.json.

    Parameters
    ----------
    folder : pathlib.Path
        Of the files and of network.json.
    arrays : dict
        {name: NDArray}.
    network_file : training.network_file.NetworkFile
    names : list of str
        Of the files, which are alike.
    figures : (int, float or None)
        The epoch that they are of and its validation accuracy.

    Raises UserError where a file cannot be written.
    """
    with saved_in_memory(arrays) as memory:
        network_file.add(names, file_digest(f"/proc/self/fd/{memory.fileno()}"), *figures)
        for name in names:
            memory.seek(0)
            write_whole(folder / name, memory)


def parameters_of(net):
    """A network's parameters as its ``save_parameters`` has them, {name: NDArray}, in float32 whatever its own type.

    So they load into a network that nobody has cast.
    """
    named = net._collect_params_with_prefix()
    return {
        name: parameter.data(parameter.list_ctx()[0]).as_in_context(mx.cpu()).astype("float32", copy=False)
        for name, parameter in named.items()
    }
