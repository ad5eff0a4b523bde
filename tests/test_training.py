"""The training script from the shell: what it writes, prints and refuses, and that a seed repeats it."""

import csv
import functools
import json
import os
import re
import shutil
import subprocess
import sys
from datetime import datetime

import mxnet as mx
import numpy as np
import pytest

from base.runtime import THREAD_VARIABLES, real_core_count
from model import get_attention_cifar
from tests.conftest import assert_refused, run_script
from training.network_file import read_description
from training.run.checkpoint import Checkpoints

HEADER = "epoch,train_loss,train_metric,val_loss,val_accuracy,lr,images_per_second,seconds"


train = functools.partial(run_script, "cifar10_train.py")


def train_on_digits(folder, digits, *flags):
    sets = digits.records["train"].parents[2]
    return train(
        *("--dataset", "digits", "--data-dir", sets, "--log-dir", folder, "--limit", 24, "--batch-size", 8),
        *("--seed", 1, "--log-interval", 2),
        *flags,
    )


@pytest.fixture(scope="module")
def finished(new_folder, digits):
    """A finished training: (log folder, its process)."""
    folder = new_folder("log")
    process = train_on_digits(folder, digits, "--epochs", 2, "--mix-up", 1, "--epsilon", 0.1, "--save-period", 1)
    assert process.returncode == 0, process.stderr
    return folder, process


def test_a_run_is_named_by_data_set_depth_and_time(finished):
    folder, _ = finished
    (log,) = (folder / "text").glob("*.log")
    assert re.fullmatch(r"digits_attention56_\d{12}", log.stem)
    written = datetime.strptime(log.stem[-12:], "%Y%m%d%H%M")
    assert abs((datetime.now() - written).total_seconds()) < 1.5 * 3600  # summer time may end in between
    assert list((folder / "board" / log.stem).glob("events.out.tfevents.*"))


@pytest.mark.parametrize("flags, gammas", [((), {0}), (("--no-wd", "--last-gamma"), {0, 1})], ids=["all", "no-wd"])
def test_weight_decay_and_last_gamma_are_what_the_flags_say(tmp_path, digits, flags, gammas):
    """After a step of hardly any gradient, what decays is zero and all else is still what it began as."""
    process = train_on_digits(
        *(tmp_path, digits, "--epochs", 1, "--limit", 8, "--run-name", "decay", "--lr", "1e-9", "--wd", "1e9"),
        *("--momentum", 0, "--optimizer", "sgd", "--unit", "resnext", *flags),
    )
    assert process.returncode == 0, process.stderr
    saved = mx.nd.load(str(tmp_path / "params" / "decay" / "last.params"))
    found = {
        kind: set(
            np.concatenate([array.asnumpy().ravel() for name, array in saved.items() if name.endswith(kind)]).round(3)
        )
        for kind in ("weight", "gamma")
    }
    assert found == {"weight": {0}, "gamma": gammas}


def test_the_csv_has_a_row_an_epoch(finished):
    folder, _ = finished
    (path,) = (folder / "text").glob("*.csv")
    header, *rows = path.read_text().splitlines()
    assert header == HEADER
    rows = [dict(zip(header.split(","), map(float, row.split(",")))) for row in rows]
    assert [row["epoch"] for row in rows] == [1, 2]
    for row in rows:
        assert 0 <= row["val_accuracy"] <= 1 and 0 <= row["train_metric"] <= 1
        right = row["val_accuracy"] * 24  # of 24 images
        assert right == pytest.approx(round(right), abs=1e-3)
        assert row["images_per_second"] > 0 and row["seconds"] > 24 / row["images_per_second"] > 0.02 * row["seconds"]


def test_the_last_line_names_the_best_epoch(finished):
    folder, process = finished
    (path,) = (folder / "text").glob("*.csv")
    with path.open() as file:
        best = max(csv.DictReader(file), key=lambda row: (float(row["val_accuracy"]), -int(row["epoch"])))
    accuracy = float(best["val_accuracy"])
    expected = f"Finished: best validation accuracy {accuracy:.4f} at epoch {best['epoch']} ({path})"
    assert process.stdout.splitlines()[-1] == expected


def test_parameters_are_saved_and_load(finished):
    folder, _ = finished
    (params,) = (folder / "params").iterdir()
    assert {file.name for file in params.iterdir()} == {
        "best.params", "last.params", "epoch-0001.params", "epoch-0002.params", "network.json",
        "checkpoint-000002", "checkpoint-000003",
    }  # fmt: skip
    net = get_attention_cifar(10, 56)
    net.load_parameters(str(params / "best.params"))
    assert net(mx.nd.zeros((1, 3, 32, 32))).shape == (1, 10)
    with open(folder / "text" / f"{params.name}.csv", newline="") as file:
        accuracies = [float(row["val_accuracy"]) for row in csv.DictReader(file)]
    for name, accuracy in (("last", accuracies[-1]), ("best", max(accuracies)), ("epoch-0001", accuracies[0])):
        assert read_description(params / f"{name}.params").accuracy == pytest.approx(accuracy, rel=1e-4)


def test_the_log_names_the_metric_and_the_flags(finished):
    folder, process = finished
    (log,) = (folder / "text").glob("*.log")
    text = log.read_text()
    assert text.count("mixed accuracy") == 2 and "seed=1" in text
    assert "epoch 1/2  step 2/3  loss" in process.stdout  # plain progress: this is no terminal
    assert "Traceback" not in process.stderr


READ_EVENTS = """
import json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
events = EventAccumulator(sys.argv[1])
events.Reload()
tags = events.Tags()
steps = [event.step for event in events.Scalars("accuracy/validation")]
print(json.dumps([tags["scalars"], tags["images"], len(tags["histograms"]), steps]))
"""


def test_tensorboard_reads_every_figure(finished):
    folder, _ = finished
    (board,) = (folder / "board").iterdir()
    # a process of its own: tensorboard and mxboard both define the same protocol buffers
    read = subprocess.run([sys.executable, "-c", READ_EVENTS, board], capture_output=True, text=True, check=True)
    scalars, images, histograms, steps = json.loads(read.stdout)
    assert set(scalars) == {
        "loss/train", "loss/validation", "mixed_accuracy/train", "accuracy/validation", "learning_rate",
        "images_per_second",
    }  # fmt: skip
    assert (images, steps) == (["training_images"], [1, 2])
    assert histograms > 100


def test_a_seed_repeats_a_run_bit_for_bit(tmp_path, digits):
    flags = ["--epochs", 3, "--mix-up", 1, "--lr-mode", "cosine", "--warmup-epochs", 0.5]
    results = []
    for name in ("one", "two", "three"):  # several epochs: validation must not disturb what follows it
        process = train_on_digits(tmp_path, digits, "--run-name", name, *flags)
        assert process.returncode == 0, process.stderr
        parameters = mx.nd.load(str(tmp_path / "params" / name / "last.params"))
        rows = (tmp_path / "text" / f"{name}.csv").read_text().splitlines()[1:]
        figures = [row.split(",")[:6] for row in rows]  # all but the timings
        results.append(({key: value.asnumpy().tobytes() for key, value in parameters.items()}, figures))
    assert results[0] == results[1] == results[2]


def test_the_csv_of_a_taken_name_is_not_touched(finished, digits):
    folder, _ = finished
    (path,) = (folder / "text").glob("*.csv")
    before = path.read_bytes()
    process = train_on_digits(folder, digits, "--epochs", 1, "--run-name", path.stem)
    assert_refused(process, "--run-name")
    assert path.read_bytes() == before


def test_what_cannot_work_is_refused_in_one_line(tmp_path, digits):
    assert_refused(train_on_digits(tmp_path, digits, "--num-layers", 57), "57", "452")
    assert_refused(train_on_digits(tmp_path, digits, "--unit", "vgg"), "vgg", "resnext")
    assert_refused(train_on_digits(tmp_path, digits, "--num-gpus", 64), "--num-gpus 64")
    assert_refused(train_on_digits(tmp_path, digits, "--batch-size", 25), "--batch-size")
    (tmp_path / "file").write_text("")
    assert_refused(train_on_digits(tmp_path / "file", digits), "--log-dir")
    assert not list(tmp_path.glob("**/*.csv"))


def test_another_unit_trains_under_its_networks_name(tmp_path, digits):
    process = train_on_digits(tmp_path, digits, "--epochs", 1, "--unit", "resnext", "--limit", 16)
    assert process.returncode == 0, process.stderr
    (log,) = (tmp_path / "text").glob("*.log")
    assert log.stem.startswith("digits_attentionnext56_")


def test_real_images_train(tmp_path, real_images):
    process = train(
        *("--data-dir", real_images, "--log-dir", tmp_path, "--limit", 16, "--batch-size", 8, "--epochs", 1),
        *("--dataset", "cifar10", "--num-layers", 56),
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines()[-1].startswith("Finished: best validation accuracy 0.")


def test_a_run_has_the_threads_that_it_says_and_goes_on_with_as_many(tmp_path, digits):
    environ = {name: value for name, value in os.environ.items() if name not in THREAD_VARIABLES}  # conftest sets one
    flags = ("--dataset", "digits", "--data-dir", digits.records["train"].parents[2], "--log-dir", tmp_path)
    flags += ("--limit", 8, "--batch-size", 4, "--seed", 1, "--model", "resnet", "--num-layers", 11)
    process = train(*flags, "--epochs", 1, "--run-name", "run", env=environ)
    assert process.returncode == 0, process.stderr
    (threads,) = map(int, re.findall(r" with threads=(\d+): ", process.stdout))
    checkpoints = Checkpoints(tmp_path / "params" / "run")
    checkpoint, _ = checkpoints.newest_whole()
    assert checkpoint.facts["threads"] == threads and 1 <= threads <= real_core_count()
    checkpoints.save(checkpoint.arrays(), {**checkpoint.facts, "threads": 1}, checkpoint.path)
    process = train("--resume", "run", "--log-dir", tmp_path, "--epochs", 2, env=environ)
    assert process.returncode == 0 and "threads: " not in process.stdout, process.stdout  # as many as before
    assert checkpoints.newest_whole()[0].facts["threads"] == 1


def test_where_only_a_checkpoint_names_the_data_nothing_is_written(tmp_path):
    flags = ("--dataset", "digits", "--data-dir", tmp_path / "sets", "--limit", 8, "--batch-size", 4, "--epochs", 1)
    flags += ("--model", "resnet", "--num-layers", 11, "--log-dir", tmp_path, "--run-name", "run")
    process = run_script("cifar10_train.py", *flags)
    assert process.returncode == 0, process.stderr
    shutil.rmtree(tmp_path / "sets")
    process = run_script("cifar10_train.py", "--resume", "run", "--log-dir", tmp_path, "--epochs", 2)
    assert_refused(process, "only a checkpoint names that place")
    assert not (tmp_path / "sets").exists()
