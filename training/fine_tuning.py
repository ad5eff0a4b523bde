"""Training that goes out from saved parameters: --init and --freeze."""

from collections import Counter
from pathlib import Path

import mxnet as mx

from base.errors import UserError
from base.text import one_line
from model.extension import use_running_statistics
from training.network_file import NETWORK_FILE, read_description, read_parameters

__all__ = ["FineTuning", "freeze", "read_initial", "start_from"]

CLASSIFIER = "output."  # what the names of its parameters begin with, in every network
SHOWN = 12  # parts of a network in a message


class FineTuning:
    """Makes networks that start from saved parameters and of which a part may stay as it is.

    Parameters
    ----------
    make_net : callable
        Returns a new uninitialized network.
    params_path : path or None
        The .params file to start from; None where a checkpoint will say what all parameters are.
    part : str or None
        What to `freeze`.
    classes : sequence of str
        Of the new network.

    Attributes
    ----------
    summary : str or None
        What was taken from the file and what starts anew, a line.

    Raises UserError as `read_initial` and `start_from` do, and where frozen parameters would start anew.
    """

    def __init__(self, make_net, params_path, part, classes):
        self._make_net, self._part = make_net, part
        self._saved, self.summary = {}, None
        if params_path is not None:
            self._saved = read_initial(params_path, classes)
            net = make_net()
            try:
                taken, anew = start_from(net, self._saved)
            except UserError as error:
                raise UserError(f"--init {params_path}: {error}") from None
            self._check_frozen(net, anew)
            self.summary = f"started from {one_line(params_path)}: {len(taken)} of {len(taken) + len(anew)} parameters"
            if anew:
                self.summary += f"; anew: {parts_of(anew)}"

    def _check_frozen(self, net, anew):
        if self._part is None:
            return
        freeze(net, self._part)
        parameters = net._collect_params_with_prefix()
        frozen = {id(p) for piece in frozen_pieces(net, self._part) for p in piece.collect_params().values()}
        if still := [name for name in anew if id(parameters[name]) in frozen]:
            raise UserError(f"--freeze {self._part}: {parts_of(still)} would stay untrained, as --init has nothing fit")

    def __call__(self):
        """A new uninitialized network, whose initialization will take the saved values."""
        net = self._make_net()
        if self._saved:
            start_from(net, self._saved)
        if self._part is not None:
            freeze(net, self._part)
        return net


def read_initial(params_path, classes):
    """The arrays of a .params file for a network of other classes to start from, {name: NDArray}.

    Where the network.json beside it names other classes, the classifier is left out, also if it is as large: its
    outputs mean something else.

    Raises UserError where the file cannot be read, or is not what network.json says, and for numbers that are not
    finite.
    """
    arrays = read_parameters(params_path)
    if Path(params_path).with_name(NETWORK_FILE).exists() and read_description(params_path).classes != tuple(classes):
        return {name: array for name, array in arrays.items() if not name.startswith(CLASSIFIER)}
    return arrays


def start_from(net, arrays):
    """Let the initialization of a network take the values of those arrays that fit a parameter by name and by shape.

    Parameters
    ----------
    net : HybridBlock
        Uninitialized.
    arrays : dict
        {name, as in .params files: NDArray}.

    Returns
    -------
    2 lists of str
        The names of the parameters that take a value, and of those that start as they would without.

    Raises UserError where none fits.
    """
    taken, anew = [], []
    for name, parameter in net._collect_params_with_prefix().items():
        fits = name in arrays and arrays[name].shape == parameter.shape
        (taken if fits else anew).append(name)
        if fits:
            parameter.init = Saved(arrays[name].astype("float32", copy=False))
    if not taken:
        raise UserError("it has no parameter of this network's names and shapes")
    return taken, anew


class Saved(mx.init.Initializer):
    """Initialization with an array of a parameter's shape.

    Unlike MXNet's own Constant it has no part in the text of a graph, where a network's numbers would take gigabytes
    and minutes.
    """

    def __init__(self, value):
        super().__init__()
        self._value = value

    def _init_weight(self, _, array):
        array[:] = self._value


def freeze(net, part):
    """Keep a beginning of a network as it is: no gradients, and batch normalization by the statistics that it has.

    These do not follow the new images, neither in what is computed nor in what is saved, so that the part computes in
    training what it computes in validation. It is what torchvision's detectors and Keras' ``trainable = False`` do.

    Parameters
    ----------
    net : HybridBlock
        Not run yet.
    part : str
        A key of the network's ``beginnings()``.
    """

    for piece in frozen_pieces(net, part):
        piece.collect_params().setattr("grad_req", "null")
        use_running_statistics(piece)


def frozen_pieces(net, part):
    """The blocks that `freeze` keeps."""
    return net.pieces()[: net.beginnings()[part]]


def parts_of(names):
    """Parameters' names for a message: "features.3 (24 parameters), output.weight"."""
    counts = Counter(name if name.startswith(CLASSIFIER) else ".".join(name.split(".")[:2]) for name in names)
    parts = [part if count == 1 else f"{part} ({count} parameters)" for part, count in counts.items()]
    more = [f"and {len(parts) - SHOWN} more parts"] if len(parts) > SHOWN else []
    return ", ".join(parts[:SHOWN] + more)
