"""CIFAR from its official binary files, and the digits: lossless, and clear about what is missing."""

import hashlib
import os
import tarfile

import cv2
import numpy as np
import pytest

import data.cifar
from base.errors import UserError
from data.cifar import CLASS_NAMES, cifar_archives, open_cifar
from data.datasets import open_dataset
from data.download import download
from data.records import Records


def make_binary_files(folder, name, rows=12, seed=0):
    """Random rows in the official layout; returns {file name: table}."""
    archive = cifar_archives[name]
    draw = np.random.default_rng(seed)
    tables = {}
    for file in archive.train + archive.test:
        table = draw.integers(0, 256, (rows, archive.label_bytes + 3072), dtype=np.uint8)
        table[:, : archive.label_bytes] = draw.integers(0, archive.classes, (rows, archive.label_bytes))
        tables[file] = table
        (folder / archive.folder).mkdir(parents=True, exist_ok=True)
        table.tofile(folder / archive.folder / file)
    return tables


def all_images(path):
    records = Records(path)
    everything = np.arange(len(records))
    images = [cv2.imdecode(png, cv2.IMREAD_COLOR)[:, :, ::-1] for png in records.encoded(everything)]
    return np.stack(images), records.labels(everything)


@pytest.mark.parametrize("name, label_column", [("cifar10", 0), ("cifar100", 1)])
def test_records_hold_every_pixel_and_the_fine_label(tmp_path, name, label_column):
    tables = make_binary_files(tmp_path, name)
    archive = cifar_archives[name]
    dataset = open_cifar(name, tmp_path)
    assert (dataset.name, dataset.classes, dataset.size) == (name, archive.classes, 32)
    for split, files in (("train", archive.train), ("test", archive.test)):
        table = np.concatenate([tables[file] for file in files])
        images, labels = all_images(dataset.records[split])
        np.testing.assert_array_equal(labels, table[:, label_column])
        red_green_blue = table[:, archive.label_bytes :].reshape(-1, 3, 32, 32)
        np.testing.assert_array_equal(images.transpose(0, 3, 1, 2), red_green_blue)


def test_changed_binary_files_make_new_records(tmp_path):
    make_binary_files(tmp_path, "cifar10")
    before, _ = all_images(open_cifar("cifar10", tmp_path).records["test"])
    make_binary_files(tmp_path, "cifar10", seed=1)
    after, _ = all_images(open_cifar("cifar10", tmp_path).records["test"])
    assert (before != after).any()


@pytest.mark.parametrize("content, complaint", [(b"\1" * 3072, "whole number of rows"), (b"\xff" * 3073, "label 255")])
def test_a_damaged_binary_file_is_named(tmp_path, content, complaint):
    make_binary_files(tmp_path, "cifar10")
    (tmp_path / "cifar-10-batches-bin" / "test_batch.bin").write_bytes(content)
    with pytest.raises(UserError, match=rf"test_batch\.bin is damaged.*{complaint}"):
        open_cifar("cifar10", tmp_path)
    assert not (tmp_path / "records" / "cifar10").exists()


def test_without_data_or_network_both_ways_out_are_named(tmp_path, monkeypatch):
    unreachable = cifar_archives["cifar10"]._replace(url="http://127.0.0.1:9/cifar-10-binary.tar.gz")
    monkeypatch.setitem(cifar_archives, "cifar10", unreachable)
    monkeypatch.setattr("data.download.BACKOFF", 0)
    with pytest.raises(UserError, match="data_batch_1.bin.*--data-dir.*--dataset digits") as raised:
        open_cifar("cifar10", tmp_path)
    assert "\n" not in str(raised.value)


def test_an_archive_that_is_there_is_verified_and_unpacked(tmp_path, monkeypatch):
    make_binary_files(tmp_path / "made", "cifar10")
    archive = cifar_archives["cifar10"]
    packed = tmp_path / "cifar-10-binary.tar.gz"
    with tarfile.open(packed, "w:gz") as tar:
        tar.add(tmp_path / "made" / archive.folder, archive.folder)
    monkeypatch.setattr(data.cifar, "download", lambda url, path, md5: download(url, path, md5_of(path)))
    assert len(Records(open_cifar("cifar10", tmp_path).records["train"])) == 60


def md5_of(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def test_real_images_are_read(real_images):
    dataset = open_cifar("cifar10", real_images)
    images, labels = all_images(dataset.records["train"])
    assert images.shape == (500, 32, 32, 3)
    assert np.bincount(labels.astype(int)).tolist() == [50] * 10
    np.testing.assert_allclose(images.mean(axis=(0, 1, 2)), dataset.mean, atol=8)
    np.testing.assert_allclose(images.std(axis=(0, 1, 2)), dataset.std, atol=8)


def test_digits_are_real_scans_with_a_held_out_fifth(digits):
    images, labels = all_images(digits.records["train"])
    held_out, held_out_labels = all_images(digits.records["test"])
    assert images.shape == (1437, 32, 32, 3) and held_out.shape == (360, 32, 32, 3)
    assert set(labels) == set(held_out_labels) == set(range(10))
    assert not {image.tobytes() for image in images} & {image.tobytes() for image in held_out}
    assert round(images.mean(), 1) == digits.mean[0] and round(images.std(), 1) == digits.std[0]


@pytest.mark.parametrize("name", ["cifar10", "digits"])
def test_where_nothing_may_be_written_a_data_set_is_there_or_its_place_is_named(tmp_path, name):
    if name == "cifar10":
        make_binary_files(tmp_path, name)
    for path in [*tmp_path.rglob("*"), tmp_path]:
        os.utime(path, (0, 0))  # a change within a tick of the clock would not be seen
    before = {path: path.stat().st_mtime_ns for path in [tmp_path, *tmp_path.rglob("*")]}
    with pytest.raises(UserError, match=f"{tmp_path}/records/{name} is missing.* --data-dir"):
        open_dataset(name, tmp_path, may_write=False)
    assert {path: path.stat().st_mtime_ns for path in [tmp_path, *tmp_path.rglob("*")]} == before
    written = open_dataset(name, tmp_path)
    assert open_dataset(name, tmp_path, may_write=False) == written


def test_where_nothing_may_be_written_nothing_is_fetched(tmp_path):
    with pytest.raises(UserError, match="cifar-100-binary is missing"):
        open_cifar("cifar100", tmp_path, may_write=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", cifar_archives)
def test_every_class_has_a_name_of_its_own_in_the_order_of_the_alphabet(name):
    assert len(CLASS_NAMES[name]) == cifar_archives[name].classes
    assert list(CLASS_NAMES[name]) == sorted(set(CLASS_NAMES[name]))
