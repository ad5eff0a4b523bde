"""The trained networks that the repository holds, by their short names. No heavy imports: --help needs this."""

from pathlib import Path

__all__ = ["DEFAULT", "TRAINED", "add_params_flag", "params_path", "trained_params"]

TRAINED = Path(__file__).resolve().parent.parent / "model" / "trained"
DEFAULT = "cifar10-attention56"


def trained_params(name):
    """The path of the parameters that the trained network of a short name has, or would have."""
    return TRAINED / name / f"{name}.params"


def trained_names():
    """The short names of the trained networks at hand, a list of str."""
    return sorted(path.stem for path in TRAINED.glob("*/*.params"))


def params_path(value):
    """What a flag says of parameters, as a path: that of a .params file, or of the network of a short name.

    A file of that name goes first.
    """
    known = value in trained_names() and not Path(value).is_file()
    return str(trained_params(value)) if known else value


def add_params_flag(parser):
    """Add --params to a script that shows what a trained network does."""
    at_hand = DEFAULT in trained_names()
    parser.add_argument(
        "--params",
        type=params_path,
        default=DEFAULT if at_hand else None,
        required=not at_hand,
        metavar="FILE",
        help="a .params file with its network.json beside it, or the name of a network that the repository holds",
    )
