"""Where a training is, as numbers that can be written down."""

import json

import pytest

from training.run.progress import Position, Totals


def some_position(**changes):
    values = {"steps": 10, "epoch": 3, "step": 4, "seconds": 1.5, "totals": Totals(32, 60.25, 0.1 + 0.2), "skipped": 1}
    return Position(**{**values, "best_accuracy": 0.7, "best_epoch": 2, **changes})


def test_a_position_comes_back_unchanged():
    written = some_position().to_json()
    assert Position.from_json(json.loads(json.dumps(written)), 10).to_json() == written


@pytest.mark.parametrize("step, steps, expected", [(4, 5, 2), (4, 20, 8), (1, 5, 1), (10, 5, 5), (9, 5, 4)])
def test_in_longer_or_shorter_epochs_it_is_the_same_share_and_never_an_end(step, steps, expected):
    position = Position.from_json(some_position(step=step).to_json(), steps)
    assert (position.epoch, position.step, position.steps) == (3, expected, steps)


@pytest.mark.parametrize(
    "change", [{"step": 11}, {"epoch": -1}, {"epoch": 1.0}, {"steps": 0}, {"seconds": float("inf")}, {"totals": [1]},
               {"seconds": 0.0}, {"more": 1}, {"best_accuracy": None}, {"step": True}],
    ids=str,
)  # fmt: skip
def test_what_is_no_position_is_refused(change):
    with pytest.raises(ValueError, match="no position"):
        Position.from_json({**some_position().to_json(), **change}, 10)


def test_the_first_of_the_best_epochs_is_kept():
    position = Position(steps=1)
    for accuracy in (0.1, 0.7, 0.3, 0.7):
        position.finish_epoch(accuracy)
    assert (position.epoch, position.best_accuracy, position.best_epoch) == (4, 0.7, 2)
