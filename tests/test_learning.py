"""Trainings by the command line, within this process: they learn, and at the rates that the flags name."""

import csv
import math
import sys

import mxnet as mx
import numpy as np
import pytest

import cifar10_train
from model import AttentionNetCifar


@pytest.fixture
def train(tmp_path, digits, monkeypatch):
    """Trains Attention-56 at an eighth of its width on the digits; returns the folder of the logs."""
    monkeypatch.setattr(AttentionNetCifar, "stem_channels", 4)
    monkeypatch.setattr(AttentionNetCifar, "channels", (16, 32, 64, 128))
    sets = digits.records["train"].parents[2]

    def run(name, *flags):
        place = ("--dataset", "digits", "--data-dir", sets, "--log-dir", tmp_path, "--run-name", name, "--seed", 1)
        monkeypatch.setattr(sys, "argv", list(map(str, ["cifar10_train.py", *place, *flags])))
        cifar10_train.main()
        return tmp_path

    return run


def test_a_training_learns_the_digits(train):
    folder = train("run", "--epochs", 2, "--batch-size", 16, "--lr", 0.05, "--lr-mode", "cosine")
    with open(folder / "text" / "run.csv") as file:
        rows = list(csv.DictReader(file))
    first, last = (float(row["train_loss"]) for row in rows)
    assert last < 0.85 * first
    # Chance is a tenth, and log(10). With this seed it was 0.9; others, as other processors may, had 0.63 and 0.83.
    assert float(rows[-1]["val_accuracy"]) > 0.5
    assert float(rows[-1]["val_loss"]) < 0.7 * math.log(10)


ONE_STEP_AN_EPOCH = ("--epochs", 2, "--limit", 16, "--batch-size", 16, "--save-period", 1)
PLAIN_DESCENT = ("--optimizer", "sgd", "--momentum", 0, "--wd", 0, "--lr", 0.05)


def change_of_the_second_step(folder, name):
    """What the second step, which is the second epoch, added to the parameters: {name: numpy array}."""
    first, second = (mx.nd.load(str(folder / "params" / name / f"epoch-{number:04d}.params")) for number in (1, 2))
    return {key: (second[key] - first[key]).asnumpy() for key in first if "running" not in key}


def test_each_step_is_taken_at_the_rate_of_the_schedule(train):
    flags = (*ONE_STEP_AN_EPOCH, *PLAIN_DESCENT)
    whole, tenth, nothing = (
        change_of_the_second_step(train(name, *flags, *mode), name)
        for name, mode in {
            "constant": ("--lr-mode", "step", "--lr-steps", 80),
            "step": ("--lr-mode", "step", "--lr-steps", 1),
            "cosine": ("--lr-mode", "cosine"),
        }.items()
    )
    assert max(abs(change).max() for change in whole.values()) > 1e-3
    for name, change in whole.items():
        np.testing.assert_allclose(tenth[name], 0.1 * change, atol=1e-6)
        np.testing.assert_array_equal(nothing[name], 0)
