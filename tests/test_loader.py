"""Batches: a fresh permutation every epoch, disjoint shards, exact validation, repeatable to the bit."""

import ctypes
import itertools

import mxnet as mx
import numpy as np
import pytest

from base.errors import UserError
from data.augmentation import Cutout, PaddedCrop, RandomErasing, WholeImage
from data.loader import WHOLE, Loader, LoaderOptions, Shard, ShardedLoader, copied, label_shifts
from data.records import Records


def make_loader(dataset, batch_size=10, training=True, shard=0, num_shards=1, **options):
    options = LoaderOptions(batch_size, **{"seed": 1, **options})
    return Loader(dataset, "train", options, mx.cpu(), training, Shard(shard, num_shards))


def test_crops_reach_all_corners_of_the_frame_alike():
    (corners,) = PaddedCrop(4).draw([b""] * 4000, np.random.default_rng(0))
    values, counts = np.unique(corners, return_counts=True)
    assert values.tolist() == list(range(-4, 5)) and counts.min() > 0.8 * counts.max()


def test_a_validation_goes_on_where_dali_has_read_ahead(numbered, monkeypatch):
    loader, starts, start = make_loader(numbered(25), training=False), [], Loader._start
    monkeypatch.setattr(Loader, "_start", lambda self, *at: starts.append(at) or start(self, *at))

    def validation():
        batches = list(loader.epoch(0))
        return [batch.count for batch in batches], [batch.images.asnumpy().tolist() for batch in batches]

    first = validation()
    assert first == validation() and first[0] == [10, 10, 5] and len(starts) == 1
    next(loader.epoch(0))  # as a picture of the first images is drawn
    assert first == validation() and len(starts) == 2


def test_another_seed_has_another_order(numbered):
    dataset = numbered(50)
    first, again, other = (make_loader(dataset, seed=seed)._order(0).tolist() for seed in (1, 1, 2))
    assert first == again != other


def test_crops_are_others_in_each_epoch_step_and_shard(numbered):
    dataset = numbered(200)
    drawn = set()
    for epoch, step, shard in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)):
        _, *draws = make_loader(dataset, shard=shard, num_shards=2)._inputs(epoch, step)
        drawn.add(b"".join(np.asarray(draw).tobytes() for draw in draws))
    assert len(drawn) == 4


def labels_of(loader, epoch=0, **options):
    return [
        label for batch in loader.epoch(epoch, **options) for label in batch.labels.asnumpy()[: batch.count].astype(int)
    ]


def test_each_epoch_is_a_fresh_permutation_of_the_whole_set(numbered):
    loader = make_loader(numbered(2000), batch_size=50)
    orders = [labels_of(loader, epoch) for epoch in range(3)]
    assert all(sorted(order) == list(range(2000)) for order in orders)
    assert orders[0] != orders[1] != orders[2]
    # not just shuffled within a buffer: early images turn up late
    assert np.corrcoef(orders[0], range(2000))[0, 1] < 0.1


def test_shards_share_out_an_epoch(numbered):
    dataset = numbered(60)
    shards = [labels_of(make_loader(dataset, shard=shard, num_shards=3)) for shard in range(3)]
    assert [len(shard) for shard in shards] == [20, 20, 20]
    assert sorted(itertools.chain(*shards)) == list(range(60))


def test_too_few_for_another_batch_are_left_to_other_epochs(numbered):
    loader = make_loader(numbered(25))
    assert loader.steps == 2
    assert len(set(labels_of(loader))) == 20
    assert {label for epoch in range(8) for label in labels_of(loader, epoch)} == set(range(25))


@pytest.mark.parametrize("batch_size", [1, 7, 10, 64])
@pytest.mark.parametrize("num_shards", [1, 2, 3])
def test_validation_sees_every_image_exactly_once(numbered, batch_size, num_shards):
    dataset = numbered(31)
    loaders = [
        make_loader(dataset, batch_size, training=False, shard=shard, num_shards=num_shards)
        for shard in range(num_shards)
    ]
    assert len({loader.steps for loader in loaders}) == 1
    for _ in range(2):
        assert sorted(itertools.chain(*map(labels_of, loaders))) == list(range(31))
    assert all(batch.images.shape[0] == batch_size for batch in loaders[0].epoch(0))


def batches_of(loader, epoch=0, first_step=0):
    return [batch.images.asnumpy() for batch in loader.epoch(epoch, first_step)]


def test_the_same_seed_gives_the_same_batches(numbered):
    dataset = numbered(50)
    one, same, other = (batches_of(make_loader(dataset, seed=seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert (np.array(one) != np.array(other)).any()


def test_decoding_threads_do_not_change_batches(numbered):
    dataset = numbered(50)
    np.testing.assert_array_equal(*(batches_of(make_loader(dataset, threads=threads)) for threads in (1, 3)))


def test_an_epoch_can_be_entered_anywhere(numbered):
    dataset = numbered(50)
    loader = make_loader(dataset)
    straight = [batches_of(loader, epoch) for epoch in range(2)]
    np.testing.assert_array_equal(batches_of(make_loader(dataset), epoch=1, first_step=3), straight[1][3:])
    next(loader.epoch(0))  # left in the middle
    np.testing.assert_array_equal(batches_of(loader, epoch=0), straight[0])


def test_crops_of_the_padded_image_and_mirrors_are_all_that_changes(real_images):
    from data.cifar import open_cifar

    dataset = open_cifar("cifar10", real_images)._replace(mean=(10.0, 20.0, 30.0), std=(2.0, 4.0, 8.0))
    originals = []
    for batch in Loader(dataset, "train", LoaderOptions(50, seed=1), mx.cpu(), training=False).epoch(0):
        originals.extend(batch.images.asnumpy())
    mean, std = (np.array(values, np.float32).reshape(3, 1, 1) for values in (dataset.mean, dataset.std))
    loader = Loader(dataset, "train", LoaderOptions(50, seed=1), mx.cpu(), training=True)
    batch = next(loader.epoch(0))
    seen = set()
    for position, image in zip(loader._positions(0, 0)[0], batch.images.asnumpy()):
        pixels = np.round(originals[position] * std + mean)
        padded = np.pad(pixels, ((0, 0), (4, 4), (4, 4)))
        shown = np.round(image * std + mean)
        size, range_of_corners = dataset.size, range(9)
        matches = [
            (top, left, mirrored)
            for top in range_of_corners
            for left in range_of_corners
            for mirrored in (False, True)
            if (padded[:, top : top + size, left : left + size][:, :, :: -1 if mirrored else 1] == shown).all()
        ]
        assert matches
        seen.add(matches[0])
    assert {mirrored for *_, mirrored in seen} == {False, True}
    assert len({corner[:2] for corner in seen}) > 20


def test_images_are_decoded_and_normalized_exactly(real_images):
    import cv2

    from data.cifar import open_cifar

    dataset = open_cifar("cifar10", real_images)
    (batch, *_) = Loader(dataset, "test", LoaderOptions(20, seed=0), mx.cpu(), training=False).epoch(0)
    png = Records(dataset.records["test"]).encoded(np.arange(20))
    images = np.stack([cv2.imdecode(image, cv2.IMREAD_COLOR)[:, :, ::-1] for image in png]).astype(np.float32)
    expected = ((images - dataset.mean) / dataset.std).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(batch.images.asnumpy(), expected, atol=1e-5)


def test_digits_are_never_mirrored(numbered):
    draws = [make_loader(numbered(50, mirror=mirror))._inputs(0, 0)[2] for mirror in (False, True)]
    assert not draws[0].any() and draws[1].any()


def test_devices_of_a_process_go_in_step(numbered):
    loader = ShardedLoader(numbered(40), "train", LoaderOptions(5, seed=1), [mx.cpu(0), mx.cpu(1)], training=True)
    steps = list(loader.epoch(0))
    assert (loader.steps, loader.batch_size, len(steps)) == (4, 10, 4)
    assert [batch.images.context for batch in steps[0]] == [mx.cpu(0), mx.cpu(1)]
    assert sorted(label for step in steps for batch in step for label in batch.labels.asnumpy()) == list(range(40))


def test_workers_share_out_every_epoch_and_one_with_all_their_devices_sees_the_same_steps(numbered):
    dataset, devices = numbered(40), [mx.cpu(0), mx.cpu(1)]

    def labels(epoch, contexts, rank=0, size=1):
        shard = Shard(rank, size)
        loader = ShardedLoader(dataset, "train", LoaderOptions(5, seed=1), contexts, training=True, shard=shard)
        return [[set(batch.labels.asnumpy()) for batch in step] for step in loader.epoch(epoch)]

    epochs = []
    for epoch in (0, 1):
        workers = [labels(epoch, devices, rank=rank, size=2) for rank in (0, 1)]
        together = labels(epoch, [mx.cpu(number) for number in range(4)])
        assert [first + second for first, second in zip(*workers)] == together
        assert set().union(*(share for step in together for share in step)) == set(range(40))
        epochs.append(together)
    assert epochs[0] != epochs[1]


def test_a_batch_larger_than_the_set_is_refused(numbered):
    with pytest.raises(UserError, match=r"20 images.*batch of 15 on each of 2.*--batch-size"):
        make_loader(numbered(20), batch_size=15, num_shards=2)


def test_an_image_that_cannot_be_decoded_is_an_error_in_one_line(tmp_path, numbered):
    dataset = numbered(20)
    path = dataset.records["train"]
    content = bytearray(path.read_bytes())
    start = content.index(b"\x89PNG")
    content[start : start + 40] = b"\0" * 40
    path.write_bytes(content)
    with pytest.raises(UserError, match="cannot be decoded") as raised:
        labels_of(make_loader(dataset, training=False))
    assert "\n" not in str(raised.value)


def test_a_gpus_copy_has_ended_when_mxnet_gets_the_array(monkeypatch):
    class Tensor:
        def shape(self):
            return [2, 3]

        def copy_to_external(self, pointer, cuda_stream=None, non_blocking=False):
            self.waited = not non_blocking
            (ctypes.c_float * 6).from_address(pointer.value)[:] = range(6)

    tensor, device = Tensor(), mx.cpu()
    monkeypatch.setattr(mx.Context, "device_type", "gpu")
    array = copied(tensor, device)
    assert tensor.waited
    monkeypatch.undo()
    np.testing.assert_array_equal(array.asnumpy(), [[0, 1, 2], [3, 4, 5]])


@pytest.mark.parametrize("length", [8, 9])
def test_cutout_hides_a_square_of_every_image(numbered, length):
    dataset = numbered(40)._replace(mean=(7.0, 7.0, 7.0), mirror=False)
    plain = Loader(dataset, "train", LoaderOptions(40, seed=1), mx.cpu(), training=True)
    hiding = Loader(
        dataset._replace(erasing=Cutout(length, 32)), "train", LoaderOptions(40, seed=1), mx.cpu(), training=True
    )
    (before,), (after,) = plain.epoch(0), hiding.epoch(0)
    before, after = before.images.asnumpy(), after.images.asnumpy()
    hidden = (before != after).any(axis=1)
    assert (after[np.broadcast_to(hidden[:, None], after.shape)] == 0).all()  # the mean's value
    heights, widths = ((hidden.any(axis=axis)).sum(axis=1) for axis in (2, 1))
    assert (hidden.sum(axis=(1, 2)) == heights * widths).all()
    assert heights.max() == length and heights.min() < length and heights.min() >= length // 2
    assert len({tuple(image.ravel().nonzero()[0][:1]) for image in hidden}) > 30  # elsewhere in each
    (validated,) = Loader(
        dataset._replace(erasing=Cutout(length, 32)), "test", LoaderOptions(40, seed=1), mx.cpu(), training=False
    ).epoch(0)
    assert (validated.images.asnumpy()[:, 1] == -7).all()


def test_random_erasing_hides_rectangles_of_some_images():
    erasing, draw = RandomErasing(0.25, 64), np.random.default_rng(0)
    starts, extents = erasing.draw([b""] * 4000, draw)
    erased = (extents > 0).all(axis=1)
    assert 0.22 < erased.mean() < 0.28 and (extents[~erased] == 0).all()
    assert (starts >= 0).all() and (starts + extents <= 64).all()
    shares = extents[erased].prod(axis=1) / 64**2
    assert 0.015 < shares.min() < 0.03 and 0.37 < shares.max() < 0.43
    aspects = extents[erased, 0] / extents[erased, 1]
    assert aspects.min() < 0.4 and aspects.max() > 2.5


def test_rectangles_are_hidden_where_they_were_drawn(numbered):
    class Fixed(RandomErasing):
        def draw(self, encoded, generator):
            return np.float32([[2, 5], [0, 0]]), np.float32([[3, 4], [0, 0]])

    dataset = numbered(2)._replace(erasing=Fixed(1, 32), mean=(0.5, 0.5, 0.5), training_crop=WholeImage())
    (batch,) = Loader(dataset, "train", LoaderOptions(2, seed=1), mx.cpu(), training=True).epoch(0)
    hidden = (batch.images.asnumpy() == 0).all(axis=1)
    assert hidden[0, 2:5, 5:9].all() and hidden[0].sum() == 12 and not hidden[1].any()


def labels_by_image(loader, dataset):
    """{number that an image's colour says: its label}"""
    found = {}
    for batch in loader.epoch(0):
        colours = batch.images[:, :2, 16, 16].asnumpy()
        found.update(zip((colours[:, 0] - 5 + 250 * colours[:, 1]).astype(int), batch.labels.asnumpy()))
    return found


def test_label_noise_is_fixed_and_uniform_over_the_other_classes(numbered):
    dataset = numbered(240)._replace(training_crop=WholeImage())

    def labels(noise, seed=1, training=True, shard=WHOLE):
        options = LoaderOptions(60, seed=seed, label_noise=noise)
        return labels_by_image(Loader(dataset, "train", options, mx.cpu(), training=training, shard=shard), dataset)

    noisy = labels(0.5)
    wrong = [image for image, label in noisy.items() if label != image]
    assert len(noisy) == 240 and 90 < len(wrong) < 150
    assert len({noisy[image] for image in wrong}) > 60  # not the next class of each
    assert labels(0.5) == noisy and labels(0.5, seed=2) != noisy
    halves = {**labels(0.5, shard=Shard(0, 2)), **labels(0.5, shard=Shard(1, 2))}
    assert all(noisy[image] == label for image, label in halves.items())
    for clean in (labels(0.0), labels(0.5, training=False)):
        assert all(image == label for image, label in clean.items())
    shifts = label_shifts(30000, 10, 0.3, seed=0)
    counts = np.bincount(shifts.astype(int), minlength=10)
    assert abs(counts[0] - 21000) < 300 and (abs(counts[1:] - 1000) < 120).all()
    with pytest.raises(UserError, match="single class"):
        label_shifts(5, 1, 0.3, seed=0)


def test_accumulated_batches_are_those_of_one_larger_step(numbered):
    dataset, contexts = numbered(41), [mx.cpu(0), mx.cpu(1)]
    single = ShardedLoader(dataset, "train", LoaderOptions(4, seed=1), contexts, training=True)
    loader = ShardedLoader(dataset, "train", LoaderOptions(4, seed=1, accumulate=2), contexts, training=True)
    assert (single.steps, loader.steps, loader.batch_size) == (5, 2, 16)
    batches = [[batch.coordinates for batch in step] for step in loader.epoch(0)]
    assert batches == [
        [(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1)],
        [(0, 2, 0), (0, 2, 1), (0, 3, 0), (0, 3, 1)],
    ]
    assert [[b.coordinates for b in step] for step in loader.epoch(1, 1)] == [
        [(1, 2, 0), (1, 2, 1), (1, 3, 0), (1, 3, 1)]
    ]
    first = loader._loaders[0]
    assert first.steps == 4 and first._due == (2, 0), "the pipeline goes on where the next epoch begins"
    validation = ShardedLoader(dataset, "test", LoaderOptions(4, seed=1, accumulate=2), contexts, training=False)
    assert validation.steps == 6
    with pytest.raises(UserError, match="--accumulate"):
        ShardedLoader(dataset, "train", LoaderOptions(4, seed=1, accumulate=6), contexts, training=True)
