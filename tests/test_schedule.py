"""Learning rates step by step."""

import math

import pytest

from training.schedule import Falls, learning_rates


def test_steps_fall_to_a_tenth_at_the_epochs_named():
    rate = learning_rates("step", 0.1, epochs=10, steps_per_epoch=5, falls=Falls([4, 8]))
    assert [rate(step) for step in (0, 19)] == [0.1, 0.1]
    assert [rate(step) for step in (20, 39)] == pytest.approx([0.01, 0.01])
    assert [rate(step) for step in (40, 49)] == pytest.approx([0.001, 0.001])


def test_warmup_rises_linearly_from_a_hundredth():
    rate = learning_rates("step", 1.0, epochs=10, steps_per_epoch=5, warmup_epochs=2, falls=Falls([4]))
    warmup = [rate(step) for step in range(10)]
    assert warmup[0] == pytest.approx(0.01) and warmup[-1] == pytest.approx(1.0)
    rises = [after - before for before, after in zip(warmup, warmup[1:])]
    assert rises == pytest.approx([0.11] * 9)
    assert [rate(step) for step in (10, 19, 20)] == pytest.approx([1.0, 1.0, 0.1])  # epochs count from the start


def test_cosine_reaches_zero_at_the_last_step():
    rate = learning_rates("cosine", 0.2, epochs=4, steps_per_epoch=5, warmup_epochs=1)
    assert rate(5) == pytest.approx(0.2)
    assert rate(12) == pytest.approx(0.1)  # half-way from step 5 to step 19
    assert rate(6) == pytest.approx(0.1 * (1 + math.cos(math.pi / 14)))
    assert rate(19) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("mode", ["step", "cosine"])
@pytest.mark.parametrize("warmup_epochs", [0, 0.5])
def test_the_shortest_trainings_have_a_rate(mode, warmup_epochs):
    rate = learning_rates(mode, 0.1, epochs=1, steps_per_epoch=2, warmup_epochs=warmup_epochs, falls=Falls([80]))
    assert all(math.isfinite(rate(step)) for step in range(2))
    single = learning_rates(mode, 0.1, epochs=1, steps_per_epoch=1, falls=Falls([80]))
    assert single(0) == pytest.approx(0.1)
