"""How far a training has come, as numbers that can be written down."""

import json

import mxnet as mx
import pytest

from training.averages import Averages
from training.run.progress import TrainingProgress

SOME_AVERAGES = Averages({"loss": (32, 60.25), "metric": (32, 0.1 + 0.2)})


def some_progress(**changes):
    values = {"steps": 10, "epoch": 3, "step": 4, "seconds": 1.5, "averages": SOME_AVERAGES, "skipped": 1}
    return TrainingProgress(**{**values, "best_accuracy": 0.7, "best_epoch": 2, **changes})


def test_it_comes_back_unchanged():
    written = some_progress().to_json()
    assert TrainingProgress.from_json(json.loads(json.dumps(written)), 10).to_json() == written


@pytest.mark.parametrize("step, steps, expected", [(4, 5, 2), (4, 20, 8), (1, 5, 1), (10, 5, 5), (9, 5, 4)])
def test_in_longer_or_shorter_epochs_it_is_the_same_share_and_never_an_end(step, steps, expected):
    progress = TrainingProgress.from_json(some_progress(step=step).to_json(), steps)
    assert (progress.epoch, progress.step, progress.steps) == (3, expected, steps)


@pytest.mark.parametrize(
    "change", [{"step": 11}, {"epoch": -1}, {"epoch": 1.0}, {"steps": 0}, {"seconds": float("inf")},
               {"averages": {"loss": [1]}}, {"averages": [1]}, {"seconds": 0.0},
               {"more": 1}, {"best_accuracy": None}, {"step": True}],
    ids=str,
)  # fmt: skip
def test_what_is_none_is_refused(change):
    with pytest.raises(ValueError, match="no progress"):
        TrainingProgress.from_json({**some_progress().to_json(), **change}, 10)


def test_the_first_of_the_best_epochs_is_kept():
    progress = TrainingProgress(steps=1)
    for accuracy in (0.1, 0.7, 0.3, 0.7):
        progress.finish_epoch(accuracy)
    assert (progress.epoch, progress.best_accuracy, progress.best_epoch) == (4, 0.7, 2)


def test_a_checkpoint_from_before_figures_had_names_is_understood():
    written = some_progress().to_json()
    del written["averages"]
    progress = TrainingProgress.from_json({**written, "totals": [32, 60.25, 0.1 + 0.2]}, 10)
    assert progress.averages.sums() == SOME_AVERAGES.sums()


def test_a_figure_that_is_new_counts_from_where_it_begins():
    averages = Averages.of(["loss", "new"], known=SOME_AVERAGES)
    averages.add({"loss": mx.nd.full(8, 2.0), "new": mx.nd.ones(8)})
    averages.collect()
    assert averages.means() == {"loss": (60.25 + 16) / 40, "new": 1.0}
