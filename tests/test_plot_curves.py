"""Curves from a run's CSV."""

import subprocess
import sys

import matplotlib.image
import pytest

from scripts.plot_curves import read_figures
from tests.conftest import ROOT

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
