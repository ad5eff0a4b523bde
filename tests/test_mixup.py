"""Mixup and label smoothing do what their papers say, and repeat."""

import mxnet as mx
import numpy as np

from data.loader import Batch
from data.mixup import TargetTransform, cutmix, mixup, smooth_labels


def test_mixup_mixes_with_the_reversed_batch():
    images = mx.nd.arange(4).reshape((4, 1, 1, 1))
    targets = mx.nd.one_hot(mx.nd.array([0, 1, 2, 0]), 3)
    mixed, mixed_targets = mixup(images, targets, 0.75)
    np.testing.assert_allclose(mixed.asnumpy().ravel(), [0.75, 1.25, 1.75, 2.25])
    np.testing.assert_allclose(mixed_targets.asnumpy(), [[1, 0, 0], [0, 0.75, 0.25], [0, 0.25, 0.75], [1, 0, 0]])


def test_cutmix_takes_a_rectangle_of_the_reversed_batch_and_counts_its_pixels():
    images = mx.nd.arange(4).reshape((4, 1, 1, 1)).broadcast_to((4, 3, 8, 8))
    targets = mx.nd.one_hot(mx.nd.array([0, 1, 2, 0]), 3)
    areas = set()
    for seed in range(20):
        mixed, mixed_targets = (found.asnumpy() for found in cutmix(images, targets, 0.75, np.random.default_rng(seed)))
        taken = mixed[0, 0] == 3
        assert (mixed[0, 0][~taken] == 0).all() and set(np.unique(mixed[0])) == {0, 3}
        rows, columns = np.flatnonzero(taken.any(axis=1)), np.flatnonzero(taken.any(axis=0))
        assert taken[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()  # a rectangle, half as high and wide
        assert len(rows) <= 4 and len(columns) <= 4
        np.testing.assert_array_equal(np.unique(mixed[1]), [1, 2])
        share = 1 - taken.sum() / 64
        np.testing.assert_allclose(mixed_targets[1], [0, share, 1 - share], rtol=1e-6)
        areas.add(taken.sum())
    assert 16 in areas and len(areas) > 1  # whole, and cut off at the border
    same, same_targets = cutmix(images, targets, 1.0, np.random.default_rng(0))
    np.testing.assert_array_equal(same.asnumpy(), images.asnumpy())
    np.testing.assert_array_equal(same_targets.asnumpy(), targets.asnumpy())


def test_another_seed_mixes_other_shares():
    batch = Batch(mx.nd.zeros((4, 1, 1, 1)), mx.nd.array([0, 1, 2, 0]), 4, (0, 0, 0))
    first, again, other = (
        TargetTransform(3, mixup_epochs=1, seed=seed)(batch).targets.asnumpy().tolist() for seed in (1, 1, 2)
    )
    assert first == again != other


def test_mixup_and_cutmix_take_turns():
    def cut(alpha, cutmix_alpha, step):
        """Whether pixels of both images stand side by side, each as it is."""
        images = mx.nd.arange(2).reshape((2, 1, 1, 1)).broadcast_to((2, 1, 16, 16))
        transform = TargetTransform(2, alpha=alpha, cutmix_alpha=cutmix_alpha, mixup_epochs=1)
        mixed = transform(Batch(images, mx.nd.array([0, 1]), 2, (0, step, 0))).images.asnumpy()
        return set(np.unique(mixed)) == {0, 1}

    assert sum(cut(1.0, 1.0, step) for step in range(100)) in range(30, 60)
    assert not any(cut(1.0, 0.0, step) for step in range(20))
    assert sum(cut(0.0, 1.0, step) for step in range(20)) > 15
    assert TargetTransform(2, alpha=0.0, mixup_epochs=1).metric_name(0) == "accuracy"


def test_smoothing_puts_one_minus_epsilon_on_the_class():
    targets = smooth_labels(mx.nd.one_hot(mx.nd.array([2]), 5), 0.1)
    np.testing.assert_allclose(targets.asnumpy(), [[0.025, 0.025, 0.9, 0.025, 0.025]], rtol=1e-6)


def test_smoothing_shares_out_a_mixture_too():
    targets = smooth_labels(mx.nd.array([[0.75, 0, 0.25, 0, 0], [0, 0, 0, 0, 1]]), 0.1)
    expected = [[0.68125, 0.025, 0.24375, 0.025, 0.025], [0.025, 0.025, 0.025, 0.025, 0.9]]
    np.testing.assert_allclose(targets.asnumpy(), expected, rtol=1e-6)


def test_a_single_class_has_nobody_to_give_to():
    targets = mx.nd.ones((3, 1))
    np.testing.assert_array_equal(smooth_labels(targets, 0.1).asnumpy(), targets.asnumpy())


def a_batch(coordinates=(0, 0, 0)):
    images = mx.nd.random.normal(shape=(6, 3, 4, 4))
    return Batch(images, mx.nd.array([0, 1, 2, 3, 4, 0]), 6, coordinates)


def test_smoothing_and_mixup_work_together():
    _, targets, aims = TargetTransform(5, alpha=1.0, mixup_epochs=1, epsilon=0.1, seed=3)(a_batch())
    share = targets[1, 1].asscalar()  # of image 1, class 1, whose partner is image 4, class 4
    assert 0 < share < 1
    expected = [0.025, 0.025 + 0.875 * share, 0.025, 0.025, 0.9 - 0.875 * share]
    np.testing.assert_allclose(aims[1].asnumpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(aims.sum(axis=1).asnumpy(), np.ones(6), rtol=1e-6)


def test_without_either_the_batch_stays_as_it_is():
    batch = a_batch()
    images, _, aims = TargetTransform(5)(batch)
    np.testing.assert_array_equal(images.asnumpy(), batch.images.asnumpy())
    np.testing.assert_array_equal(aims.asnumpy(), mx.nd.one_hot(batch.labels, 5).asnumpy())


def test_the_last_epochs_are_not_mixed_and_the_metric_says_so():
    mixing = TargetTransform(5, alpha=1.0, mixup_epochs=2, seed=3)
    names = [mixing.metric_name(epoch) for epoch in range(3)]
    assert names == ["mixed accuracy", "mixed accuracy", "accuracy"]
    shares = [mixing(a_batch((epoch, 0, 0)))[1].max(axis=1).min().asscalar() for epoch in range(3)]
    assert shares[0] < 1 and shares[1] < 1 and shares[2] == 1


def test_lambda_follows_the_beta_distribution_and_differs_by_place():
    alpha, mixing = 0.4, TargetTransform(2, alpha=0.4, mixup_epochs=1000, seed=0)
    labels = mx.nd.array([0, 1])
    shares = [
        mixing(Batch(mx.nd.zeros((2, 1, 1, 1)), labels, 2, (epoch, step, shard)))[1][0, 0].asscalar()
        for epoch in range(10) for step in range(10) for shard in range(5)
    ]  # fmt: skip
    assert len(set(shares)) == len(shares)
    assert abs(np.mean(shares) - 0.5) < 0.06
    assert abs(np.var(shares) - 1 / (4 * (2 * alpha + 1))) < 0.02
    again = mixing(Batch(mx.nd.zeros((2, 1, 1, 1)), labels, 2, (0, 0, 1)))[1][0, 0].asscalar()
    assert again == shares[1]
