"""network.json: what the .params files of a folder are of. Written beside them, read by every command that uses them.

It holds how the network is built, what it takes and what its outputs mean; and for each .params file its SHA-256, and
how good it was after which epoch. A property that networks get later is a field of `NetworkDescription` with a default,
which older files then mean, and a line in ``ACCEPTS``.
"""

import dataclasses
import io
import json
import math
from collections import namedtuple
from functools import partial
from pathlib import Path
from typing import Optional

import mxnet as mx
import numpy as np

from base.errors import UserError
from base.files import file_digest, open_regular, reading, write_whole
from base.text import has_controls, one_line
from model import (
    AttentionNet,
    AttentionNetCifar,
    ResNetCifar,
    attention_net_spec,
    get_attention_cifar,
    get_attention_net,
    get_resnet_cifar,
    units,
)
from model.attention import AttentionVariant, attentions, learnings, masks
from training.params_format import check_layout

__all__ = [
    "FAMILIES",
    "NETWORK_FILE",
    "Family",
    "NetworkDescription",
    "NetworkFile",
    "check_depth",
    "copy_network_file",
    "describe",
    "load_network",
    "load_parameters",
    "make_network",
    "read_description",
    "read_parameters",
]

NETWORK_FILE = "network.json"
FORMAT_VERSION = 1

Family = namedtuple("Family", ["network", "make", "depths"])
Family.__doc__ = """Networks of one stem.

network : type
    The class, which knows the sizes it takes.
make : callable
    ``make(classes, num_layers, **kwargs)``: a new uninitialized network.
depths : container of int
    The numbers of layers that there are.
"""

FAMILIES = {
    "cifar": Family(AttentionNetCifar, get_attention_cifar, list(attention_net_spec)),
    "imagenet": Family(AttentionNet, get_attention_net, list(attention_net_spec)),
    "resnet": Family(ResNetCifar, get_resnet_cifar, ResNetCifar.depths),
}


@dataclasses.dataclass(frozen=True)
class NetworkDescription:
    """What a network is, and what it was trained on.

    Attributes
    ----------
    family : str
        A key of `FAMILIES`.
    depth : int
        Number of layers, one that the family has.
    unit : str
        A key of `model.units`.
    classes : tuple of str
        Their names, in the order of the outputs.
    input_size : int
        Height and width in pixels of the images that it was trained on.
    mean, std : tuple of 3 floats
        What images are normalized by, RGB on the scale 0 to 255.
    crop_ratio : float
        Share of the short side that the centre crop has in validation; 1 for the whole side.
    dataset : str
        What it was trained on.
    modules : tuple of 3 int, optional
        Attention modules in each stage, where they are not those of the depth.
    attention, learning, mask : str
        Of `model.attention.AttentionVariant`.
    epoch, accuracy : int, float, optional
        How far the parameters were trained (from 1 on), and the validation accuracy then. Of one .params file.
    """

    family: str
    depth: int
    unit: str
    classes: tuple
    input_size: int
    mean: tuple
    std: tuple
    crop_ratio: float
    dataset: str
    modules: Optional[tuple] = None
    attention: str = "mixed"
    learning: str = "residual"
    mask: str = "hourglass"
    epoch: Optional[int] = None
    accuracy: Optional[float] = None

    @property
    def attends(self):
        """Whether the network has masks."""
        return self.family != "resnet" and self.mask != "none"


OF_ONE_FILE = ("epoch", "accuracy")


def _is_name(value):
    return isinstance(value, str) and not has_controls(value)


def _is_colour(value, least):
    """Whether a value is three finite numbers for red, green and blue, above ``least``."""
    numbers = isinstance(value, (list, tuple)) and len(value) == 3 and all(type(n) in (int, float) for n in value)
    return numbers and all(math.isfinite(number) and number > least for number in value)


def _is_modules(value):
    """Whether a value is three counts; networks of hundreds of modules are nobody's."""
    counts = isinstance(value, (list, tuple)) and len(value) == 3
    return counts and all(type(count) is int and 0 < count < 100 for count in value)


# What a field of `NetworkDescription` may be in a file.
ACCEPTS = {
    "family": lambda value: isinstance(value, str) and value in FAMILIES,
    "depth": lambda value: type(value) is int,  # and see `_described`
    "unit": lambda value: isinstance(value, str) and value in units,
    "classes": lambda value: isinstance(value, (list, tuple)) and len(value) > 0 and all(map(_is_name, value)),
    "input_size": lambda value: type(value) is int and 0 < value < 1 << 14,
    "mean": partial(_is_colour, least=-math.inf),
    "std": partial(_is_colour, least=0),
    "crop_ratio": lambda value: type(value) in (int, float) and 0.1 <= value <= 1,
    "dataset": _is_name,
    "modules": lambda value: value is None or _is_modules(value),
    "attention": lambda value: isinstance(value, str) and value in attentions,
    "learning": lambda value: isinstance(value, str) and value in learnings,
    "mask": lambda value: isinstance(value, str) and value in masks,
}


def check_depth(family, depth):
    """Raise UserError, which names --num-layers, where a family of networks has none of that depth."""
    depths = FAMILIES[family].depths
    if depth not in depths:
        names = ", ".join(map(str, depths)) if len(depths) < 10 else "9 n + 2, such as 164"
        raise UserError(f"--num-layers {depth}: choose one of {names}")


def describe(dataset, family, depth, unit, **variant):
    """The `NetworkDescription` of a network for a `data.dataset.Dataset`; the others are fields of it."""
    names = map(one_line, dataset.class_names or range(dataset.classes))
    crop_ratio = getattr(dataset.validation_crop, "crop_ratio", 1.0)
    view = dataset.size, tuple(dataset.mean), tuple(dataset.std), crop_ratio
    return NetworkDescription(family, depth, unit, tuple(names), *view, dataset.name, **variant)


def make_network(description):
    """The network that a `NetworkDescription` describes, new and uninitialized."""
    make, options = FAMILIES[description.family].make, {}
    if description.family != "resnet":
        variant = AttentionVariant(description.attention, description.learning, description.mask)
        options = {"unit": units[description.unit], "modules": description.modules, "variant": variant}
    return make(len(description.classes), description.depth, **options)


class NetworkFile:
    """The network.json of a folder, as it is written.

    A new .params file takes the place of an old one only after its entry stands beside the old one's: a training that
    is killed between the two leaves a network.json that is true of either.

    Parameters
    ----------
    folder : pathlib.Path
    description : NetworkDescription
    """

    def __init__(self, folder, description):
        self._path, self._description = folder / NETWORK_FILE, description
        try:
            entries = _read(self._path)[1] if self._path.exists() else []
        except UserError:  # damaged: the next `add` writes it anew
            entries = []
        self._entries = [entry for entry in entries if _is_true(entry, folder)]

    def later_than(self, epoch):
        """{name of a .params file: its epoch} of those that are of later epochs."""
        return {entry["name"]: entry["epoch"] for entry in self._entries if entry["epoch"] > epoch}

    def name_anew(self, name, new_name):
        """Say that a .params file is about to have another name. Raises UserError as `add` does."""
        entries = [{**entry, "name": new_name} for entry in self._entries if entry["name"] == name]
        self._write(self._entries + entries)
        self._entries = [entry for entry in self._entries if entry["name"] != name] + entries

    def add(self, names, digest, epoch, accuracy):
        """Say of .params files that are about to be written what they are.

        Parameters
        ----------
        names : list of str
        digest : str
            SHA-256 of their bytes, in hexadecimal.
        epoch : int
            From 1 on.
        accuracy : float or None
            Of the validation after it.

        Raises UserError where the file cannot be written.
        """
        new = [{"name": name, "sha256": digest, "epoch": epoch, "accuracy": accuracy} for name in names]
        entries = [entry for entry in self._entries if entry not in new] + new
        self._write(entries)
        self._entries = [entry for entry in entries if entry in new or entry["name"] not in names]

    def _write(self, entries):
        fields = dataclasses.asdict(self._description)
        network = {name: value for name, value in fields.items() if name not in OF_ONE_FILE}
        content = {"format": FORMAT_VERSION, "network": network, "files": entries}
        write_whole(self._path, io.BytesIO(json.dumps(content, indent=1).encode() + b"\n"))


def read_description(params_path):
    """The `NetworkDescription` of a .params file, from the network.json beside it.

    Raises UserError where one of the two files is missing or cannot be read, where network.json is damaged, and where
    it says that the .params file should have other bytes.
    """
    params_path = Path(params_path)
    digest = _params_digest(params_path)
    description, entries = _read(params_path.with_name(NETWORK_FILE))
    fitting = [entry for entry in entries if entry["sha256"] == digest]  # also under another name
    if fitting:
        return dataclasses.replace(description, epoch=fitting[-1]["epoch"], accuracy=fitting[-1]["accuracy"])
    if any(entry["name"] == params_path.name for entry in entries):
        raise UserError(
            f"{params_path} is damaged or was replaced: {NETWORK_FILE} beside it gives another checksum for that name"
        )
    return description


def copy_network_file(params_path, folder):
    """Copy the network.json of a .params file to another folder. Returns its path there.

    Raises UserError where it cannot be copied, where the folder has one that other .params files there need, and where
    it holds what was exported of another network.
    """
    source, target = Path(params_path).with_name(NETWORK_FILE), Path(folder) / NETWORK_FILE
    content = source.read_bytes()
    if target.exists():
        if target.read_bytes() == content:
            return target
        try:
            network, entries = _read(target)
        except UserError:  # damaged: no use to anyone
            network, entries = None, []
        needed_by = [entry["name"] for entry in entries if (target.parent / entry["name"]).exists()]
        if network not in (None, _read(source)[0]):
            needed_by += sorted(path.name for path in target.parent.glob("*-symbol.json"))
        if needed_by:
            raise UserError(f"{target} is what {needed_by[0]} there needs: choose another folder")
    write_whole(target, io.BytesIO(content))
    return target


def load_network(params_path, contexts=None):
    """The network of a .params file with its parameters, as network.json beside it describes it.

    Parameters
    ----------
    params_path : path
    contexts : list of mxnet.Context, optional
        Where the network is to run; the CPU by default.

    Returns
    -------
    (HybridBlock, NetworkDescription)
        The network has not run yet: `model.onednn.hybridize` makes it fast.

    Raises UserError as `read_description` and `load_parameters` do.
    """
    description = read_description(params_path)
    net = make_network(description)
    net.initialize(mx.init.Zero(), ctx=contexts or [mx.cpu()])
    load_parameters(net, params_path)
    return net, description


def load_parameters(net, params_path):
    """Load a .params file into an initialized network, in the network's precision.

    Raises UserError where it cannot be read, where a number in it is not finite and where it is another network's.
    """
    loaded, own = read_parameters(params_path), net._collect_params_with_prefix()
    for name in [*own, *loaded]:
        if name not in loaded or name not in own:
            where = "the network" if name in own else "the file"
            raise UserError(f"{params_path} is not of this network: {name} is in {where} alone")
        if own[name].shape != loaded[name].shape:
            raise UserError(
                f"{params_path} is not of this network: {name} is {loaded[name].shape} there and {own[name].shape} here"
            )
    for name, parameter in own.items():
        parameter.set_data(loaded[name].astype(parameter.dtype, copy=False))


def read_parameters(params_path):
    """The arrays of a .params file, {name: NDArray}.

    Raises UserError where it cannot be read and, with the parameter's name, where a number in it is not finite.
    """
    try:
        with reading(params_path):
            with open_regular(params_path) as file:
                check_layout(file.read())
            loaded = mx.nd.load(str(params_path))
    except mx.base.MXNetError as error:  # all but the end of its last line is of MXNet's source files
        reason = " ".join(str(error).rpartition(": ")[2].split())
        raise UserError(f"cannot read {params_path}: {reason}") from None
    except (ValueError, KeyError, TypeError) as error:  # a damaged name, or type of numbers
        raise UserError(f"cannot read {params_path}: {' '.join(str(error).split())}") from None
    if not isinstance(loaded, dict):
        raise UserError(f"cannot read {params_path}: its arrays have no names")
    for name, array in loaded.items():
        if not np.isfinite(array.asnumpy()).all():
            raise UserError(f"{params_path} cannot be used: {name} is not finite")
    return loaded


def _params_digest(path):
    """SHA-256 of a .params file. Raises UserError where it is none to be read."""
    with reading(path):
        return file_digest(path)


def _read(path):
    """(`NetworkDescription`, entries of .params files) of a network.json. Raises UserError where it is damaged."""
    if not path.is_file():
        raise UserError(f"{path} is missing: it says what the parameters beside it are of")
    try:
        content = json.loads(path.read_bytes())
        if content["format"] != FORMAT_VERSION:
            raise ValueError(f"it is of format {content['format']}, not {FORMAT_VERSION}")
        return _described(content["network"]), [_entry(entry) for entry in content["files"]]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except KeyError as error:
        raise UserError(f"{path} is damaged: it lacks {error}") from None
    except (AttributeError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {error}") from None


def _is_true(entry, folder):
    """Whether a .params file in a folder is what an entry says of its name."""
    path = folder / entry["name"]
    return path.is_file() and file_digest(path) == entry["sha256"]


def _described(fields):
    """The `NetworkDescription` of what a network.json has of it. Raises ValueError for what it cannot be."""
    for name, value in fields.items():
        if name not in ACCEPTS:
            raise ValueError(f"networks have no {name!r} here")
        if not ACCEPTS[name](value):
            raise ValueError(f"{name} cannot be {json.dumps(value)[:80]}")
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    description = NetworkDescription(**values)
    if description.depth not in FAMILIES[description.family].depths:
        raise ValueError(f"there is no network of family {description.family} and depth {description.depth}")
    if not FAMILIES[description.family].network.takes(description.input_size):
        raise ValueError(f"networks of family {description.family} do not take input_size {description.input_size}")
    return description


def _entry(entry):
    """What a network.json says of a .params file. Raises ValueError for what it cannot say."""
    name, digest, epoch, accuracy = (entry[field] for field in ("name", "sha256", "epoch", "accuracy"))
    known = accuracy is None or (type(accuracy) in (int, float) and 0 <= accuracy <= 1)
    named = _is_name(name) and "/" not in name and isinstance(digest, str)
    if not (named and type(epoch) is int and epoch > 0 and known):
        raise ValueError(f"it says of a .params file {json.dumps(entry)[:80]}")
    return entry
