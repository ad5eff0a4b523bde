"""Draw curves of runs: python -m scripts.plot_curves RUN|CSV|FOLDER...

A run is its name under --log-dir, the path of its CSV, or a folder of TensorBoard events. One CSV gives two pictures,
its accuracies and its losses; several runs give a picture for each figure that they logged, with a line for each run.
"""

import csv
import io
import sys
from itertools import cycle
from pathlib import Path

import pandas
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from base.errors import UserError, run_command
from base.files import open_regular
from base.flags import OneLineParser
from base.text import one_line
from training.run.files import NO_CURVES, RunPaths

CURVES = {
    "accuracy": {"train_metric": "training", "val_accuracy": "validation"},
    "loss": {"train_loss": "training", "val_loss": "validation"},
}
AVERAGED = {"accuracy": "val_ema_accuracy", "loss": "val_ema_loss"}  # what runs with --ema have besides
BEST = {"loss": "idxmin", "accuracy": "idxmax", "metric": "idxmax", "top5": "idxmax"}  # by the end of a figure's name
# Okabe and Ito's, which colour-blind readers tell apart
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", ":", "-.")  # the next where the colours begin again
FEW_EPOCHS = 30  # below this each epoch is marked


def plot_curves(path, folder):
    """Write RUN-accuracy.png and RUN-loss.png to ``folder``; returns their paths.

    Raises UserError as `read_figures` does.
    """
    columns = ["epoch", *(column for curve in CURVES.values() for column in curve)]
    table = read_csv(path, columns, optional=AVERAGED.values())
    pictures = []
    for name, lines in CURVES.items():
        if AVERAGED[name] in table:
            lines = {**lines, AVERAGED[name]: "validation, average of the weights"}
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axes = figure.subplots()
        for column, label in lines.items():
            axes.plot(table["epoch"], table[column], marker="o" if len(table) < FEW_EPOCHS else None, label=label)
        validated = list(lines)[-1]  # by which a run's best epoch is chosen
        if name == "accuracy" and table[validated].notna().any():
            best = table.loc[table[validated].idxmax()]
            axes.axhline(best[validated], color="grey", linewidth=0.8, linestyle=":")
            axes.set_title(f"{drawable(path.stem)}: best {best[validated]:.4f} at epoch {best['epoch']:.0f}")
        else:
            axes.set_title(drawable(path.stem))
        pictures.append(finish(figure, axes, name, folder / f"{path.stem}-{name}.png"))
    return pictures


def plot_runs(runs, folder):
    """Write runs-FIGURE.png to ``folder`` for each figure that runs logged; returns the paths.

    Parameters
    ----------
    runs : dict
        {label: pandas.DataFrame with a row an epoch, the columns ``epoch`` and those of the figures}.
    folder : pathlib.Path
    """
    figures = dict.fromkeys(column for table in runs.values() for column in table if column not in NO_CURVES)
    pictures = []
    for name in figures:
        figure = Figure(figsize=(8, 5), layout="constrained")
        axes = figure.subplots()
        looks = zip(cycle(COLOURS), cycle([line for line in LINES for _ in COLOURS]))
        for (label, table), (colour, line) in zip(runs.items(), looks):
            if name in table and table[name].notna().any():
                plot_run(axes, table[["epoch", name]].dropna(), label, {"color": colour, "linestyle": line})
        pictures.append(finish(figure, axes, name, folder / f"runs-{name.replace('/', '-')}.png"))
    return pictures


def plot_run(axes, table, label, look):
    """Draw a run's line, and a star at its best epoch where its figure has a best; the legend names both."""
    name, label = table.columns[1], drawable(label)
    direction = BEST.get(name.replace("/", "_").rpartition("_")[2])
    if direction:
        best = table.loc[getattr(table[name], direction)()]
        label = f"{label}: best {best[name]:.4f} at epoch {best['epoch']:.0f}"
        axes.plot(best["epoch"], best[name], marker="*", markersize=13, markeredgecolor="black", color=look["color"])
    marker = "." if len(table) < FEW_EPOCHS else None
    axes.plot(table["epoch"], table[name], marker=marker, label=label, **look)


def drawable(text):
    """A run's name for matplotlib, which draws no half characters and takes $ as the beginning of a formula."""
    return one_line(text).encode(errors="replace").decode().replace("$", r"\$")


def finish(figure, axes, name, path):
    """Name the axes of a picture and write it. Returns its path."""
    if "loss" in name:
        axes.set_yscale("log")
    axes.set(xlabel="epoch", ylabel=drawable(name))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    return path


def read_figures(path, columns=None, optional=()):
    """Columns of a run's CSV, all of them by default, as a pandas.DataFrame of float; and how many rows are cut short.

    These are left out, and so are ``optional`` columns that are not there. Raises UserError where it cannot be read,
    lacks a column, or has no epoch.
    """
    try:
        with io.TextIOWrapper(open_regular(path), encoding="utf-8", newline="") as file:
            names, *rows = filter(None, csv.reader(file))
        if len(set(names)) < len(names) or any(len(row) > len(names) for row in rows):
            raise ValueError("its rows do not fit their names")
        whole = [row for row in rows if len(row) == len(names)]
        taken = [*columns, *(name for name in optional if name in names)] if columns else names
        table = pandas.DataFrame(whole, columns=names)[taken].replace("", "nan").astype(float)
        table["epoch"]
    except (OSError, KeyError, ValueError, csv.Error) as error:
        raise UserError(f"{path} is no CSV of a run: {' '.join(str(error).split())}") from None
    if table.empty:
        raise UserError(f"{path} has no epoch yet")
    return table, len(rows) - len(whole)


def read_csv(path, columns=None, optional=()):
    """The table of `read_figures`; says on stderr what is left out."""
    table, cut = read_figures(path, columns, optional)
    if cut:
        print(one_line(f"{path}: {cut} of its rows cut short, and left out"), file=sys.stderr)
    return table


def read_events(folder):
    """The scalars of a folder of TensorBoard events as a pandas.DataFrame, under their names in a run's CSV.

    Raises UserError where there are none.
    """
    # imported late: it takes a second
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={SCALARS: 0})  # 0 is all of them
    try:
        events.Reload()
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror}") from None
    # A resumed run may have logged an epoch twice: the later counts.
    curves = {}
    for tag in events.Tags()[SCALARS]:
        curve, name = pandas.Series({event.step: event.value for event in events.Scalars(tag)}), column_name(tag)
        curves[name] = curve.combine_first(curves[name]) if name in curves else curve  # mixup's epochs, and others
    if not curves:
        raise UserError(f"{folder} has no curve in it")
    return pandas.DataFrame(curves).sort_index().rename_axis("epoch").reset_index()


def column_name(tag):
    """A CSV's name of a TensorBoard curve, the inverse of `training.run.logger.curve_name`; others keep theirs."""
    figure, _, split = tag.partition("/")
    figure = {"top5_accuracy": "top5"}.get(figure, figure)
    if split == "train" and figure in ("accuracy", "mixed_accuracy"):
        return "train_metric"
    splits = {"train": "train", "validation": "val", "validation_ema": "val_ema"}
    return f"{splits[split]}_{figure}" if split in splits else {"learning_rate": "lr"}.get(tag, tag)


def find_run(name, log_dir):
    """What a flag means by a run: the path of a CSV or of a folder of events. Raises UserError where there is none."""
    path = Path(name)
    if path.is_dir():
        if not any(path.glob("*tfevents*")):
            raise UserError(f"the folder {path} has no TensorBoard events: name a run by its CSV or its name")
        return path
    if path.exists():
        return path
    under = RunPaths(log_dir, name).csv
    if not under.is_file():
        raise UserError(f"there is no run {name}: neither that file nor {under}")
    return under


def read_runs(paths):
    """{label: table} of runs' paths: the label is the run's name or, where that is not one run's alone, the path."""
    stems = [path.name if path.is_dir() else path.stem for path in paths]
    runs = {}
    for path, stem in zip(paths, stems):
        label = one_line(stem if stems.count(stem) == 1 else path)
        runs[label] = read_events(path) if path.is_dir() else read_csv(path)
    return runs


def main():
    parser = OneLineParser(prog="python -m scripts.plot_curves", description="Draw curves of runs.")
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="a run's name, log/text/RUN.csv, or a folder of TensorBoard events"
    )
    parser.add_argument("--log-dir", type=Path, default=Path("log"), help="where names are looked up (default: log)")
    parser.add_argument("--out", type=Path, help="folder of the pictures (default: beside the first run's file)")
    args = parser.parse_args()
    paths = [find_run(name, args.log_dir) for name in dict.fromkeys(args.runs)]
    folder = args.out or paths[0].parent
    single = len(paths) == 1 and not paths[0].is_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        pictures = plot_curves(paths[0], folder) if single else plot_runs(read_runs(paths), folder)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}") from None
    for picture in pictures:
        print(one_line(picture))


if __name__ == "__main__":
    run_command(main)
