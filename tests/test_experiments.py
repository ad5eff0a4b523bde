"""Comparisons of variants: their flags, their plan, stopping and going on, their table."""

import concurrent.futures
import csv
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from types import SimpleNamespace

import pytest

from base.errors import UserError
from base.runtime import THREAD_VARIABLES
from scripts import experiments
from scripts.experiments import (
    EXPERIMENTS,
    MULTIPLY_ADDS_A_SECOND,
    SCALES,
    Trial,
    Variant,
    error_table,
    estimated_hours,
    finished,
    plan,
    report,
    train_all,
    visible_gpus,
)
from tests.conftest import ROOT, wait_until
from training.run.checkpoint import Checkpoints
from training.run.resume import begin_or_resume, discard_unbegun


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_variant_is_a_training_of_its_own(name, scale):
    trials = plan(name, scale, seeds=2)
    assert len(trials) == 2 * len(EXPERIMENTS[name][scale]) == len({trial.run for trial in trials})
    assert {trial.seed for trial in trials[: len(trials) // 2]} == {1}
    settings = [experiments.training_flags(trial.flags).settings for trial in trials]
    assert len({str(setting) for setting in settings}) == len(trials)
    assert {trial.epochs for trial in trials} == {200 if scale == "full" else 10}


def test_a_plan_is_printed_with_its_hours():
    command = [sys.executable, "-m", "scripts.experiments", "mask", "--dry-run", "--seeds", "1", "--jobs", "1"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    *commands, last = process.stdout.splitlines()
    assert len(commands) == 3 and all("cifar10_train.py --run-name mask-small-" in line for line in commands)
    # 10 epochs of 1,500 images and, at a third, as many in validation, at 46 images/s: 7 minutes a training
    hours = float(last.split("about ")[1].split(" ")[0])
    assert 0.3 <= hours <= 0.4


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_small_experiment_is_counted_as_an_hour_of_two_cores_at_most(name):
    hours = sum(estimated_hours(trial, MULTIPLY_ADDS_A_SECOND) for trial in plan(name, "small", seeds=3))
    assert 0.1 < hours / 2 < 1


def test_figures_of_the_paper_stand_beside_its_own_networks_only():
    papers = {variant.name: variant.paper for scale in SCALES for variant in EXPERIMENTS["label-noise"][scale]}
    assert papers["attention92-noise0.5"] == 7.27 and papers["resnet164-noise0.5"] == 8.35
    assert papers["attention56-noise0.5"] is None and papers["resnet164-noise0"] is None


def write_csv(folder, run, accuracies):
    (folder / "text").mkdir(exist_ok=True)
    (folder / "text" / f"{run}.log").write_text("2026-11-26 10:00:00 Finished: best validation accuracy 0.5000\n")
    with open(folder / "text" / f"{run}.csv", "w", newline="") as file:
        rows = [(epoch, accuracy, 36.0) for epoch, accuracy in enumerate(accuracies, start=1)]
        csv.writer(file).writerows([("epoch", "val_accuracy", "seconds"), *rows])


def test_the_table_has_means_and_deviations_of_the_last_epochs(tmp_path, capsys):
    easy, hard = Variant("easy", "", 5.0), Variant("hard", "")
    trials = [Trial(f"{v.name}-{seed}", v, seed, [], 2) for seed in (1, 2) for v in (easy, hard)]
    for run, accuracies in {
        "easy-1": [0.5, 0.9], "easy-2": [0.95, 0.8], "hard-1": [0.1, 0.2], "hard-2": [0.1, 0.2],
    }.items():  # fmt: skip
        write_csv(tmp_path, run, accuracies)
    report("name-full", "full", trials, [], tmp_path)
    table = (tmp_path / "name-full.md").read_text()
    assert "| easy | 2 | 15.00 ± 7.07 | 5.00 |" in table and "| hard | 2 | 80.00 ± 0.00 |  |" in table
    assert table in capsys.readouterr().out
    rows = (tmp_path / "name-full.csv").read_text().split()
    assert rows[:3] == ["variant,seed,error,best_error,hours", "easy,1,10.0,10.0,0.02", "hard,1,80.0,80.0,0.02"]
    assert "easy,2,20.0,5.0,0.02" in rows
    assert (tmp_path / "name-full.png").read_bytes().startswith(b"\x89PNG")
    assert "± " not in error_table({easy: [1.0]}, Counter())


def test_rows_that_somebody_changed_are_named(tmp_path):
    trials = [Trial("run-1", Variant("v", ""), 1, [], 2)]
    write_csv(tmp_path, "run-1", [0.5, 0.6])
    path = tmp_path / "text" / "run-1.csv"
    whole = path.read_bytes()
    for changed in (whole.replace(b"0.5", b"x"), whole.replace(b",36.0", b"", 1), whole.replace(b"seconds", b"s"),
                    whole.replace(b"0.5", b'"'), b"1" * 200_000 + whole, b""):  # fmt: skip
        path.write_bytes(changed)
        with pytest.raises(UserError, match="run-1.csv does not have the rows"):
            report("name-full", "full", trials, [], tmp_path)


def test_what_is_finished_is_not_trained_again_and_what_fails_is_named(tmp_path):
    trials = [Trial(f"run-{seed}", Variant("v", ""), seed, [], 2) for seed in (1, 2, 3)]
    write_csv(tmp_path, "run-1", [0.5, 0.6])
    write_csv(tmp_path, "run-2", [0.5])
    (tmp_path / "params" / "run-2" / "checkpoint-000004").mkdir(parents=True)
    assert [bool(finished(trial.run, 2, tmp_path)) for trial in trials] == [True, False, False]
    commands = []

    def run(command, environment, output):
        commands.append(command[2:4])
        output.write_text("error: no luck\n")
        return 2 if command[3] == "run-3" else 0

    place = ["--data-dir", "sets", "--log-dir", str(tmp_path)]
    with pytest.raises(UserError, match="run-3 ended with status 2: error: no luck"):
        train_all(trials, place, tmp_path, 1, False, SimpleNamespace(run=run, stopped=None))
    assert commands == [["--resume", "run-2"], ["--run-name", "run-3"]]


def test_a_training_that_diverges_is_left_out_and_the_others_go_on(tmp_path, capsys):
    trials = [Trial(f"run-{seed}", Variant("v", ""), seed, [], 2) for seed in (1, 2, 3)]
    other = Trial("other-1", Variant("w", ""), 1, [], 2)

    def run(command, environment, output):
        write_csv(tmp_path, command[3], [0.5, 0.6])
        return 3 if command[3] == "run-2" else 0

    place = ["--data-dir", "sets", "--log-dir", str(tmp_path)]
    diverged = train_all(trials, place, tmp_path, 1, False, SimpleNamespace(run=run, stopped=None))
    assert diverged == trials[1:2] and "run-2: its numbers are not finite any more" in capsys.readouterr().out
    (tmp_path / "text" / "run-2.log").write_text("no end\n")
    found = [finished(trial.run, 2, tmp_path) is not None for trial in trials]
    assert found == [True, False, True], "though it has all its rows"
    report("name-full", "full", [*trials, other], [*diverged, other], tmp_path)
    table = (tmp_path / "name-full.md").read_text()
    assert "| v | 2, and 1 diverged | 40.00 ± 0.00 |" in table and "| w | 0, and 1 diverged |  |" in table


def test_trainings_side_by_side_have_a_gpu_and_its_share_of_the_threads_each(tmp_path, monkeypatch):
    trials = [Trial(f"run-{seed}", Variant("v", ""), seed, [], 2) for seed in (1, 2)]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    for variable in THREAD_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(experiments, "real_core_count", lambda: 8)
    monkeypatch.chdir(tmp_path)
    together, begun = threading.Barrier(2, timeout=60), []

    def run(command, environment, output):
        together.wait()
        begun.append((environment["CUDA_VISIBLE_DEVICES"], environment["OMP_NUM_THREADS"]))
        assert command[command.index("--data-dir") + 1] == str(tmp_path / "sets"), "whatever folder it runs in"
        return 0

    train_all(trials, ["--data-dir", "sets"], tmp_path, 2, True, SimpleNamespace(run=run, stopped=None))
    assert sorted(begun) == [("3", "4"), ("5", "4")]


def test_another_precision_has_other_runs_and_results():
    trials = plan("mask", "small", 1, bfloat16=True)
    assert all(trial.run.startswith("mask-small-bfloat16-") for trial in trials)
    assert all(experiments.training_flags(trial.flags).bfloat16 for trial in trials)
    assert not any(experiments.training_flags(trial.flags).bfloat16 for trial in plan("mask", "small", 1))


def test_a_failure_is_said_at_once_and_what_waits_is_not_begun(tmp_path, capsys, monkeypatch):
    trials = [Trial(f"run-{seed}", Variant("v", ""), seed, [], 2) for seed in (1, 2, 3)]
    begun, told = [], threading.Event()

    def run(command, environment, output):
        begun.append(command[3])
        if command[3] == "run-1":
            told.wait(60)
            return 0
        raise OSError("no memory")

    class Pool(concurrent.futures.ThreadPoolExecutor):
        def shutdown(self, *arguments, **options):
            super().shutdown(*arguments, **options)
            told.set()

    monkeypatch.setattr(experiments.concurrent.futures, "ThreadPoolExecutor", Pool)

    place = ["--data-dir", "sets", "--log-dir", str(tmp_path)]
    with pytest.raises(OSError, match="no memory"):
        train_all(trials, place, tmp_path, 2, False, SimpleNamespace(run=run, stopped=None))
    assert "no memory; those that run beside it are waited for" in capsys.readouterr().out
    assert sorted(begun) == ["run-1", "run-2"]


@pytest.mark.parametrize("left", [["params/run/checkpoint-000001.new", "board/run", "text/run.log"], ["text/run.log"]])
def test_a_run_killed_before_its_first_checkpoint_leaves_its_name_free(tmp_path, left):
    for name in left:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch() if path.suffix == ".log" else path.mkdir()
    assert begin_or_resume(tmp_path, "run") == ["--run-name", "run"]
    discard_unbegun(tmp_path, "run")
    assert not list(tmp_path.glob("*/*"))


@pytest.mark.parametrize("kept", ["params/run/best.params", "text/run.csv"])
def test_a_run_that_has_come_further_is_left_alone(tmp_path, kept):
    for name in ("params/run/checkpoint-000002.new", "text/run.log", kept):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    before = sorted(tmp_path.rglob("*"))
    discard_unbegun(tmp_path, "run")
    assert sorted(tmp_path.rglob("*")) == before


def test_gpus_are_those_that_are_visible(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus(2) == [0, 1]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3,5")
    assert visible_gpus(2) == ["2", "3"]
    with pytest.raises(UserError, match="--num-gpus 4: CUDA_VISIBLE_DEVICES leaves 3"):
        visible_gpus(4)


def test_a_stopped_experiment_goes_on_and_ends_in_a_table(tmp_path, real_images):
    program = (
        "import sys\n"
        "from scripts import experiments\n"
        "from scripts.experiments import Variant, main\n"
        "experiments.SCALES['small'] = '--limit 16 --batch-size 4 --epochs 4 --save-period 0 --checkpoint-minutes 0'\n"
        "variants = [Variant('se', '--unit se'), Variant('none', '--mask none')]\n"
        "experiments.EXPERIMENTS['mask'] = {'small': variants}\n"
        f"sys.argv = ['experiments', 'mask', '--seeds', '1', '--jobs', '1', '--data-dir', {str(real_images)!r}, "
        f"'--log-dir', {str(tmp_path)!r}]\n"
        "from base.errors import run_command\n"
        "run_command(main)\n"
    )
    command = [sys.executable, "-c", program]
    first = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    folder = tmp_path / "params" / "mask-small-se-1"
    begun = wait_until(lambda: any(path.name >= "checkpoint-000002" for path in Checkpoints(folder).paths()), 300)
    assert begun, first.communicate()
    os.kill(first.pid, signal.SIGTERM)
    output, errors = first.communicate(timeout=120)
    assert (first.returncode, output, errors) == (143, "stopped; the same command goes on\n", "")
    assert not (tmp_path / "params" / "mask-small-none-1").exists()
    second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert second.returncode == 0, second.stderr
    assert "resumed at" in (tmp_path / "text" / "mask-small-se-1.log").read_text()
    assert "| se | 1 |" in second.stdout and "| none | 1 |" in second.stdout
    assert (tmp_path / "mask-small.png").is_file()
