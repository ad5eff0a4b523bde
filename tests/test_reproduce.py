"""The published tricks table: its rows as commands, and what was measured of them."""

import csv
import functools
import shlex
import subprocess
import sys

import pytest

from base.errors import UserError
from scripts import reproduce
from scripts.experiments import training_flags
from scripts.reproduce import SCALES, published_rows, row_flags, run_name, table
from tests.conftest import ROOT, assert_refused, run_module

command = functools.partial(run_module, "scripts.reproduce")


def test_the_table_is_the_published_one():
    rows = published_rows()
    assert len(rows) == 25
    assert rows[10] == (56, 1024, 1.6, 10, True, 1.0, 0.0, 0.965044)
    assert max(rows, key=lambda row: row.max_accuracy) == rows[10]
    assert {(row.layers, row.batch_size) for row in rows} == {(56, 1024), (56, 512)}
    assert [row.mix_up for row in rows].count(False) == 6
    assert "github.com/haoxintong/ResidualAttentionNetwork-Gluon" in reproduce.PUBLISHED.read_text().splitlines()[0]


@pytest.mark.parametrize("num_gpus", [0, 1, 2, 4, 8])
def test_a_step_in_full_has_the_published_images_and_the_rate_that_took_effect(num_gpus):
    for row in published_rows():
        args = training_flags(row_flags(row, SCALES["full"], num_gpus))
        assert args.batch_size * args.accumulate * max(1, num_gpus) == row.batch_size
        assert args.batch_size == row.batch_size / 8  # what batch normalization sees at a time
        assert args.lr * 8 == pytest.approx(row.lr) and args.lr_per is None and args.lr_mode == "cosine"
        assert (args.epochs, args.warmup_epochs, args.limit) == (200, row.warmup, None)
        assert (args.num_layers, bool(args.mix_up), args.alpha, args.epsilon) == (
            row.layers, row.mix_up, row.alpha, row.epsilon,
        )  # fmt: skip


def test_the_small_scale_has_as_many_steps_an_epoch():
    for row in published_rows():
        args = training_flags(row_flags(row, SCALES["small"], 0))
        assert args.limit // args.batch_size == 50_000 // row.batch_size
        assert args.warmup_epochs / args.epochs == pytest.approx(row.warmup / 200)
        assert (args.lr * 8, args.accumulate) == (pytest.approx(row.lr), 1)
    names = {run_name(scale, number) for scale in SCALES for number in range(1, 26)}
    assert len(names) == 50


def test_a_dry_run_prints_the_command_alone(tmp_path):
    process = command("--row", 11, "--num-gpus", 4, "--dry-run", "--log-dir", tmp_path)
    assert process.returncode == 0 and list(tmp_path.iterdir()) == []
    (line,) = process.stdout.splitlines()
    interpreter, script, name, run, *flags = shlex.split(line)
    assert (interpreter, script, name, run) == ("python3", "cifar10_train.py", "--run-name", "tricks-full-11")
    args = training_flags(flags)
    assert (args.lr, args.wd, args.accumulate, args.num_gpus) == (0.2, 0.0008, 2, 4)
    assert args.log_dir == str(tmp_path)
    (tmp_path / "params" / run / "checkpoint-000002").mkdir(parents=True)
    process = command("--row", 11, "--num-gpus", 4, "--dry-run", "--log-dir", tmp_path)
    assert f"--resume {run} " in process.stdout


@pytest.mark.parametrize(
    "flags, word",
    [(["--row", 26], "1 to 25"), (["--row", 0], "--row"), (["--row", "x"], "--row"), ([], "--row"),
     (["--row", 1, "--num-gpus", 3], "--num-gpus 3"), (["--row", 1, "--num-gpus", 16], "--num-gpus 16"),
     (["--row", 1, "--num-gpus", 8, "--scale", "small"], "one device"), (["--table", "--dry-run"], "--table")],
)  # fmt: skip
def test_what_there_is_not_is_refused_in_one_line(flags, word):
    assert_refused(command(*flags), word)


def write_csv(log_dir, run, accuracies):
    (log_dir / "text").mkdir(exist_ok=True)
    with open(log_dir / "text" / f"{run}.csv", "w", newline="") as file:
        rows = [(epoch, accuracy, 1.5) for epoch, accuracy in enumerate(accuracies, start=1)]
        csv.writer(file).writerows([("epoch", "val_accuracy", "seconds"), *rows])


def test_the_table_has_the_best_accuracy_of_finished_runs_alone(tmp_path):
    write_csv(tmp_path, "tricks-small-11", [0.25] * 8 + [0.375, 0.3125])
    write_csv(tmp_path, "tricks-small-12", [0.5] * 9)  # of ten epochs
    write_csv(tmp_path, "tricks-small-14", [0.5] * 10)
    (tmp_path / "text" / "tricks-small-14.log").write_text("its last epoch diverged\n")
    write_csv(tmp_path, "tricks-full-13", [0.75] * 200)
    small, full = (table(published_rows(), scale, tmp_path).splitlines()[2:] for scale in ("small", "full"))
    assert small[10] == "| 11 | 56 | 1024 | 1.6 | 0.2 | 10 | 1 |  | 0.9650 | 0.3750 |"
    assert full[12] == "| 13 | 56 | 512 | 2 | 0.25 | 5 |  |  | 0.9557 | 0.7500 |"
    assert sum(line.endswith("|  |") for line in small) == sum(line.endswith("|  |") for line in full) == 24
    write_csv(tmp_path, "tricks-small-1", ["none"] * 10)
    with pytest.raises(UserError, match=r"tricks-small-1.csv is damaged"):
        table(published_rows(), "small", tmp_path)


def test_a_row_trains_goes_on_and_comes_into_the_table(tmp_path, real_images):
    program = (
        "import sys\n"
        "from base.errors import run_command\n"
        "from scripts import reproduce\n"
        "reproduce.SCALES['small'] = reproduce.Scale(2, 256, 16)\n"
        "run_command(reproduce.main)\n"
    )
    place = ["--scale", "small", "--data-dir", real_images, "--log-dir", tmp_path]

    def run(*flags):
        command = [sys.executable, "-c", program, *map(str, flags), *map(str, place)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)

    first = run("--row", 7)
    assert first.returncode == 0, first.stderr
    last = first.stdout.splitlines()[-1]
    assert last.startswith("Finished: best validation accuracy ")
    again = run("--row", 7)
    assert again.returncode == 0 and again.stdout.splitlines()[-1] == last
    del place[2:4]
    best = last.split("accuracy ")[1].split(" ")[0]
    assert run("--table").stdout.splitlines()[8].endswith(f"| 0.1 | 0.9618 | {best} |")
