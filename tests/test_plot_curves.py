"""Curves from a run's CSV."""

import io
import subprocess
import sys

import matplotlib.image
import pandas
import pytest

from scripts import plot_curves
from scripts.plot_curves import read_figures
from tests.conftest import ROOT, assert_refused
from training.run.files import RunFiles
from training.run.logger import COLUMNS, RunLogger, curve_name

ROWS = "epoch,train_loss,train_metric,val_loss,val_accuracy,lr,images_per_second,seconds\n"


def plot(*arguments):
    command = [sys.executable, "-m", "scripts.plot_curves", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_two_pictures_are_drawn(tmp_path):
    path = tmp_path / "run.csv"
    path.write_text(ROWS + "1,2.0,0.3,1.9,0.35,0.1,12,90\n2,1.0,0.6,0.9,0.7,0.1,12,90\n")
    process = plot(path, "--out", tmp_path / "pictures")
    assert process.returncode == 0, process.stderr
    pictures = [tmp_path / "pictures" / f"run-{name}.png" for name in ("accuracy", "loss")]
    assert process.stdout.split() == [str(picture) for picture in pictures]
    for picture in pictures:
        image = matplotlib.image.imread(picture)
        assert image.shape[1] > 600 and image[..., :3].std() > 0.01  # something is drawn


@pytest.mark.parametrize("name", ["a$b_$x^.csv", "$\\frac$.csv", "a\nb.csv", "\udcff.csv", "run"], ids=ascii)
def test_a_file_may_have_any_name(tmp_path, name):
    path = tmp_path / name
    path.write_text(ROWS + "1,2.0,0.3,1.9,0.35,0.1,12,90\n")
    process = plot(path)
    assert (process.returncode, process.stdout.count("\n"), process.stderr.count("\n")) == (0, 2, 0), process.stderr
    assert len(list(tmp_path.glob("*.png"))) == 2


def test_a_row_that_is_cut_short_is_left_out_and_said(tmp_path):
    path = tmp_path / "run.csv"
    path.write_text(ROWS + "1,2.0,0.3,1.9,0.35,0.1,12,90\n2,1.0,0.6")
    process = plot(path)
    assert process.returncode == 0 and process.stderr == f"{path}: 1 of its rows cut short, and left out\n"
    table, cut = read_figures(path)
    assert (table["epoch"].tolist(), table["train_metric"].tolist(), cut) == ([1], [0.3], 1)


ROW = "1,2.0,0.3,1.9,0.35,0.1,12,90\n"


@pytest.mark.parametrize(
    "content",
    [
        None,
        "",
        ROWS,
        "a,b\n1,2\n",
        ROWS + "x,y\n",
        ROWS + "7," + ROW,
        ROWS.replace("lr", "epoch") + ROW,
        ROWS + '"' + ROW,
    ],
)
def test_what_is_no_csv_of_a_run_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "run.csv"
    if content is not None:
        path.write_text(content)
    process = plot(path)
    assert process.returncode == 2
    assert process.stderr.count("\n") == 1 and "run.csv" in process.stderr


@pytest.fixture
def runs(tmp_path):
    """Two runs under a log folder as a training logs them, and a CSV elsewhere of a name that one of them has."""
    log_dir = tmp_path / "log"
    for run, accuracies in {"first": [0.5, 0.75, 0.625], "second": [0.25, 0.5]}.items():
        for folder in (log_dir / "text", log_dir / "params" / run):
            folder.mkdir(parents=True, exist_ok=True)
        files = RunFiles(log_dir, run)
        logger = RunLogger(files, epochs=3)
        for epoch, accuracy in enumerate(accuracies, start=1):
            figures = dict.fromkeys(COLUMNS, 1.0) | {"epoch": epoch, "val_accuracy": accuracy, "val_loss": 1 - accuracy}
            if run == "first":
                figures |= {"val_top5": 0.875, "val_ema_accuracy": 0.5, "val_ema_loss": 0.5}
            logger.epoch(figures, "mixed accuracy" if epoch < 3 else "accuracy")
    (tmp_path / "first.csv").write_text(ROWS + "1,2.0,0.3,1.9,0.35,0.1,12,90\n")
    return log_dir


def test_several_runs_give_a_picture_for_each_figure(runs, tmp_path):
    out = tmp_path / "pictures"
    arguments = [runs / "board" / "first", "second", tmp_path / "first.csv", runs / "text" / "first.csv"]
    process = plot(*arguments, "--log-dir", runs, "--out", out)
    assert (process.returncode, process.stderr) == (0, "")
    figures = [column for column in COLUMNS if column not in ("epoch", "seconds")]
    figures += ["val_top5", "val_ema_accuracy", "val_ema_loss"]
    assert sorted(process.stdout.split()) == sorted(str(out / f"runs-{figure}.png") for figure in figures)
    for path in process.stdout.split():
        image = matplotlib.image.imread(path)
        assert image.shape[1] > 600 and image[..., :3].std() > 0.01


def test_a_name_is_a_run_of_the_log_folder(runs):
    process = plot("second", "--log-dir", runs)
    assert process.stdout.split() == [str(runs / "text" / f"second-{name}.png") for name in ("accuracy", "loss")]
    assert_refused(plot("second", "third", "--log-dir", runs), "there is no run third", "third.csv")
    assert_refused(plot(runs / "text", "--log-dir", runs), "no TensorBoard events")


def test_an_average_of_weights_is_drawn_and_names_the_best_epoch(runs, tmp_path, monkeypatch):
    drawn, curves = {}, {}

    def keep(figure, axes, name, path):
        drawn[name] = axes.get_title(), [text.get_text() for text in axes.legend().get_texts()]
        curves[name] = [list(line.get_ydata()) for line in axes.lines]

    monkeypatch.setattr(plot_curves, "finish", keep)
    plot_curves.plot_curves(runs / "text" / "first.csv", tmp_path)
    lines = ["training", "validation", "validation, average of the weights"]
    assert drawn == {"accuracy": ("first: best 0.5000 at epoch 1", lines), "loss": ("first", lines)}
    assert curves["accuracy"][:3] == [[1, 1, 1], [0.5, 0.75, 0.625], [0.5, 0.5, 0.5]]
    assert curves["loss"] == [[1, 1, 1], [0.5, 0.25, 0.375], [0.5, 0.5, 0.5]]
    plot_curves.plot_curves(runs / "text" / "second.csv", tmp_path)
    assert drawn["accuracy"] == ("second: best 0.5000 at epoch 2", lines[:2])


def test_labels_name_runs_and_their_best_epochs(runs, tmp_path, monkeypatch):
    paths = [runs / "text" / "first.csv", runs / "text" / "second.csv", tmp_path / "first.csv"]
    tables = plot_curves.read_runs(paths)
    assert list(tables) == [str(paths[0]), "second", str(paths[2])]
    legends, curves = {}, {}

    def keep(figure, axes, name, path):
        legends[name] = [text.get_text() for text in axes.legend().get_texts()]
        curves[name] = [list(line.get_ydata()) for line in axes.lines if len(line.get_ydata()) > 1]  # no stars

    monkeypatch.setattr(plot_curves, "finish", keep)
    plot_curves.plot_runs({"one": tables[str(paths[0])], "two": tables["second"]}, tmp_path)
    assert legends["val_accuracy"] == ["one: best 0.7500 at epoch 2", "two: best 0.5000 at epoch 2"]
    assert legends["val_loss"] == ["one: best 0.2500 at epoch 2", "two: best 0.5000 at epoch 2"]
    assert legends["lr"] == ["one", "two"]
    assert curves["val_loss"] == [[0.5, 0.25, 0.375], [0.75, 0.5]]
    assert legends["val_top5"] == ["one: best 0.8750 at epoch 1"]  # the other has none


def read_events(folder):
    """What `plot_curves.read_events` finds, by a process of its own: TensorBoard and mxboard cannot share one."""
    program = "import sys; from scripts.plot_curves import read_events; print(read_events(sys.argv[1]).to_csv())"
    command = [sys.executable, "-c", program, str(folder)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_tensorboards_curves_are_those_of_the_csv(runs):
    process = read_events(runs / "board" / "first")
    events = pandas.read_csv(io.StringIO(process.stdout), index_col=0)
    table = pandas.read_csv(runs / "text" / "first.csv").drop(columns="seconds")
    pandas.testing.assert_frame_equal(events[table.columns], table, check_dtype=False)
    for metric in ("accuracy", "mixed accuracy"):
        for column in table.columns[1:]:
            assert plot_curves.column_name(curve_name(column, metric)) == column
    empty = runs / "board" / "empty"
    empty.mkdir()
    assert "has no curve in it" in read_events(empty).stderr
