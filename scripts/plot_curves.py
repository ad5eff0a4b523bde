"""Draw a run's accuracy and loss curves from its CSV: python -m scripts.plot_curves log/text/RUN.csv"""

import csv
import io
import sys
from pathlib import Path

import matplotlib
import pandas

from base.errors import UserError, run_command
from base.files import open_regular
from base.flags import OneLineParser
from base.text import one_line

matplotlib.use("Agg")  # no display needed
from matplotlib import pyplot as plt
from matplotlib.ticker import MaxNLocator

CURVES = {
    "accuracy": {"train_metric": "training", "val_accuracy": "validation"},
    "loss": {"train_loss": "training", "val_loss": "validation"},
}


def read_figures(path):
    """A run's CSV as a pandas.DataFrame of float, and how many of its rows are cut short: these are left out.

    Raises UserError for a file that is no run's CSV or has no epoch in it.
    """
    columns = ["epoch", *(column for curve in CURVES.values() for column in curve)]
    try:
        with io.TextIOWrapper(open_regular(path), encoding="utf-8", newline="") as file:
            names, *rows = filter(None, csv.reader(file))
        if len(set(names)) < len(names) or any(len(row) > len(names) for row in rows):
            raise ValueError("its rows do not fit their names")
        whole = [row for row in rows if len(row) == len(names)]
        table = pandas.DataFrame(whole, columns=names)[columns].astype(float)
    except (OSError, KeyError, ValueError, csv.Error) as error:
        raise UserError(f"{path} is no CSV of a run: {' '.join(str(error).split())}") from None
    if table.empty:
        raise UserError(f"{path} has no epoch yet")
    return table, len(rows) - len(whole)


def plot_curves(path, folder):
    """Write RUN-accuracy.png and RUN-loss.png to ``folder``; returns their paths.

    Raises UserError as `read_figures` does.
    """
    table, cut = read_figures(path)
    if cut:
        print(one_line(f"{path}: {cut} of its rows cut short, and left out"), file=sys.stderr)
    # matplotlib draws no half characters, and would read $ as the beginning of a formula
    run, pictures = one_line(path.stem).encode(errors="replace").decode(), []
    for name, lines in CURVES.items():
        figure, axes = plt.subplots(figsize=(7, 4.5), constrained_layout=True)
        for column, label in lines.items():
            axes.plot(table["epoch"], table[column], marker="o" if len(table) < 30 else None, label=label)
        if name == "accuracy" and table["val_accuracy"].notna().any():
            best = table.loc[table["val_accuracy"].idxmax()]
            axes.axhline(best["val_accuracy"], color="grey", linewidth=0.8, linestyle=":")
            title = f"{run}: best {best['val_accuracy']:.4f} at epoch {best['epoch']:.0f}"
        else:
            title = run
        axes.set_title(title, parse_math=False)
        if name == "loss":
            axes.set_yscale("log")
        axes.set(xlabel="epoch", ylabel=name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
        pictures.append(folder / f"{path.stem}-{name}.png")
        figure.savefig(pictures[-1], dpi=120)
        plt.close(figure)
    return pictures


def main():
    parser = OneLineParser(description=__doc__.split(":")[0])
    parser.add_argument("csv", type=Path, help="log/text/RUN.csv")
    parser.add_argument("--out", type=Path, help="folder of the pictures (default: beside the CSV)")
    args = parser.parse_args()
    folder = args.out or args.csv.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        pictures = plot_curves(args.csv, folder)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}") from None
    for picture in pictures:
        print(one_line(picture))


if __name__ == "__main__":
    run_command(main)
