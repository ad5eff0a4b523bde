"""Photographs: from class folders to RecordIO that MXNet reads, and from anybody's RecordIO to batches."""

import io
import shutil
import subprocess
import sys

import mxnet as mx
import numpy as np
import pytest
from PIL import Image, ImageFile

from base.errors import UserError
from data.augmentation import CentreWindow, ColourJitter, RandomWindow, aspect_ratios
from data.imagenet import MEAN, STD, JpegOptions, as_jpeg, open_imagenet, prepare
from data.loader import Loader, LoaderOptions
from data.records import Records
from tests.conftest import ROOT


def smooth_image(width=90, height=60, seed=0):
    """An RGB image without sharp edges, which JPEG keeps nearly as it is."""
    draw = np.random.default_rng(seed)
    small = Image.fromarray(draw.integers(0, 256, (4, 6, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def encoded(image, image_format="JPEG", **options):
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def decoded(content):
    return np.asarray(Image.open(io.BytesIO(content)), np.float32)


def make_folders(folder, splits=("train", "val"), classes=("ant", "bee"), count=3):
    for split in splits:
        for label, name in enumerate(classes):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                image = smooth_image(90 + 7 * i, 60 + 9 * label, seed=10 * label + i)
                (folder / split / name / f"{i}.JPEG").write_bytes(encoded(image, quality=90))
    return folder


def turned(image):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    return encoded(image, exif=exif)


UNUSUAL = {
    "grey": (encoded(smooth_image().convert("L"), quality=95), ["grey"], "L"),
    "CMYK": (encoded(smooth_image().convert("CMYK"), quality=95), ["CMYK"], "RGB"),
    "PNG": (encoded(smooth_image(), "PNG"), ["PNG"], "RGB"),
    "alpha": (encoded(smooth_image().convert("RGBA"), "PNG"), ["PNG", "alpha"], "RGB"),
    "WebP": (encoded(smooth_image(), "WEBP", quality=95), ["WEBP"], "RGB"),
    "palette": (encoded(smooth_image().quantize(64), "GIF"), ["GIF"], None),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_every_kind_of_image_becomes_an_upright_rgb_jpeg(name):
    content, notes, mode = UNUSUAL[name]
    jpeg, found = as_jpeg(content)
    image = Image.open(io.BytesIO(jpeg))
    assert (image.format, image.mode, found) == ("JPEG", "RGB", notes)
    if mode is not None:
        expected = np.asarray(smooth_image().convert(mode).convert("RGB"), np.float32)
        assert np.abs(decoded(jpeg) - expected).mean() < 4


def test_exif_orientation_is_carried_out():
    jpeg, notes = as_jpeg(turned(smooth_image(90, 60)))
    expected = np.asarray(smooth_image(90, 60).transpose(Image.Transpose.ROTATE_270), np.float32)
    assert notes == ["EXIF orientation"] and decoded(jpeg).shape == (90, 60, 3)
    assert np.abs(decoded(jpeg) - expected).mean() < 4
    assert Image.open(io.BytesIO(jpeg)).getexif().get(0x0112, 1) == 1


def test_a_plain_jpeg_stays_the_same_to_the_byte():
    content = encoded(smooth_image(), quality=70, progressive=True)
    assert as_jpeg(content) == (content, [])
    assert as_jpeg(content, JpegOptions(short_side=60)) == (content, [])


@pytest.mark.parametrize("size, expected", [((90, 60), (45, 30)), ((60, 90), (30, 45)), ((29, 40), (29, 40))])
def test_resizing_shrinks_the_short_side_and_never_enlarges(size, expected):
    jpeg, _ = as_jpeg(encoded(smooth_image(*size)), JpegOptions(short_side=30))
    assert Image.open(io.BytesIO(jpeg)).size == expected


BROKEN = {
    "empty": b"",
    "text": b"this is no image",
    "truncated": encoded(smooth_image(300, 200))[:-2000],
    "16 bits": encoded(Image.fromarray(np.zeros((9, 9), np.uint16)), "PNG"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_image_is_none(name, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # as some packages leave it
    with pytest.raises(ValueError, match="."):
        as_jpeg(BROKEN[name])


def test_broken_images_stop_everything_and_are_named(tmp_path):
    folder = make_folders(tmp_path / "in")
    for name in ("empty", "truncated"):
        (folder / "train" / "bee" / f"{name}.JPEG").write_bytes(BROKEN[name])
    with pytest.raises(
        UserError, match=r"2 broken images.*bee/empty\.JPEG.*bee/truncated\.JPEG.*--skip-broken"
    ) as raised:
        prepare(folder, tmp_path / "out")
    assert "\n" not in str(raised.value)
    assert {path.name for path in tmp_path.iterdir()} == {"in"}

    summary = prepare(folder, tmp_path / "out", skip_broken=True, workers=2)
    assert "6 images to train on, 6 to validate, 2 classes; skipped 2 broken" in summary
    assert len(Records(tmp_path / "out" / "train.rec")) == 6
    assert "bee/empty.JPEG: skipped" in (tmp_path / "out" / "changed.txt").read_text()


def test_converted_images_are_counted_and_named(tmp_path):
    folder = make_folders(tmp_path / "in")
    for name in ("grey", "PNG"):
        (folder / "val" / "ant" / f"{name}.JPEG").write_bytes(UNUSUAL[name][0])
    summary = prepare(folder, tmp_path / "out", workers=2)
    assert "8 to validate" in summary and "1 grey" in summary and "1 PNG" in summary
    assert set((tmp_path / "out" / "changed.txt").read_text().splitlines()) == {
        "val/ant/grey.JPEG: grey",
        "val/ant/PNG.JPEG: PNG",
    }


def test_labels_follow_the_sorted_class_names(tmp_path):
    prepare(make_folders(tmp_path / "in", classes=("zebra", "ant", "bee")), tmp_path / "out")
    dataset = open_imagenet(tmp_path / "out")
    assert (tmp_path / "out" / "classes.txt").read_text().split() == ["ant", "bee", "zebra"]
    assert (dataset.classes, dataset.size) == (3, 224)
    records = Records(dataset.records["train"])
    contents = {path.read_bytes(): path.parent.name for path in (tmp_path / "in" / "train").glob("*/*")}
    for content, label in zip(records.encoded(np.arange(9)), records.labels(np.arange(9))):
        assert contents[content.tobytes()] == ["ant", "bee", "zebra"][int(label)]


def test_records_are_shuffled_and_the_same_each_time(tmp_path):
    folder = make_folders(tmp_path / "in", count=20)
    for name in ("one", "other"):
        prepare(folder, tmp_path / name)
    records = Records(tmp_path / "one" / "train.rec")
    labels = records.labels(np.arange(len(records))).tolist()
    assert labels != sorted(labels), "or --limit would take the first classes only"
    one, other = ((tmp_path / name / "train.rec").read_bytes() for name in ("one", "other"))
    assert one == other


def test_the_quality_is_that_of_what_is_encoded_anew():
    sizes = [len(as_jpeg(encoded(smooth_image(64, 64), "PNG"), JpegOptions(quality=q))[0]) for q in (20, 95)]
    assert sizes[0] < sizes[1] and len(as_jpeg(encoded(smooth_image(64, 64), "PNG"))[0]) == sizes[1]


def test_a_class_without_validation_images_moves_no_label(tmp_path):
    folder = make_folders(tmp_path / "in")
    shutil.rmtree(folder / "val" / "ant")
    prepare(folder, tmp_path / "out")
    assert Records(tmp_path / "out" / "val.rec").labels(np.arange(3)).tolist() == [1, 1, 1]


def test_a_share_of_val_alone_is_refused(tmp_path):
    folder = make_folders(tmp_path / "in")
    (folder / "train").rename(folder / "training")
    assert "has val/ and no train/ in it" in refused(folder, tmp_path / "out", val_share=0.2)


def test_a_share_of_each_class_is_held_out(tmp_path):
    folder = make_folders(tmp_path / "in", splits=["train"], count=10)
    for source, out in ((folder, "one"), (folder / "train", "two")):
        prepare(source, tmp_path / out, val_share=0.2)
        labels = [
            Records(tmp_path / out / f"{split}.rec").labels(np.arange(n)) for split, n in (("train", 16), ("val", 4))
        ]
        assert [np.bincount(split.astype(int)).tolist() for split in labels] == [[8, 8], [2, 2]]


def refused(folder, out, **options):
    with pytest.raises(UserError) as raised:
        prepare(folder, out, **options)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_folders_that_are_not_as_expected_are_named(tmp_path):
    folder = make_folders(tmp_path / "in")
    out = tmp_path / "out"
    assert "--val-share" in refused(folder, out, val_share=0.1)  # there is a val/
    assert "--val-share" in refused(folder / "train", out)
    assert "nothing" in refused(folder / "train", out, val_share=0.01)
    assert "cannot read" in refused(tmp_path / "nowhere", out, val_share=0.1)
    (folder / "val" / "cat").mkdir()
    assert "cat holds no image" in refused(folder, out)
    (folder / "val" / "cat" / "1.jpg").write_bytes(encoded(smooth_image()))
    assert "cat" in refused(folder, out)  # a class that train/ does not have
    (folder / "val" / "ILSVRC2012_val_00000001.JPEG").write_bytes(encoded(smooth_image()))
    assert "outside class folders" in refused(folder, out)
    assert not out.exists()
    out.mkdir()
    (out / "something").write_text("of value")
    assert "exists already" in refused(tmp_path / "in" / "train", out, val_share=0.5)
    assert (out / "something").read_text() == "of value"


def test_the_command_says_what_it_did_and_refuses_in_one_line(tmp_path):
    make_folders(tmp_path / "in")
    command = [sys.executable, "-m", "data.imagenet", tmp_path / "in", tmp_path / "out", "--resize", "32"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (process.returncode, process.stdout.count("\n")) == (0, 1), process.stderr
    assert "6 images to train on" in process.stdout
    contents = Records(tmp_path / "out" / "train.rec").encoded(np.arange(6))
    assert {min(Image.open(io.BytesIO(content)).size) for content in contents} == {32}
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (process.returncode, process.stderr.count("\n")) == (2, 1) and "exists already" in process.stderr


def test_mxnets_own_reader_reads_what_is_written(tmp_path):
    folder = make_folders(tmp_path / "in")
    for name in ("grey", "CMYK", "PNG"):
        (folder / "train" / "ant" / f"{name}.JPEG").write_bytes(UNUSUAL[name][0])
    prepare(folder, tmp_path / "out")
    reader = mx.io.ImageRecordIter(
        path_imgrec=str(tmp_path / "out" / "train.rec"),
        path_imgidx=str(tmp_path / "out" / "train.idx"),
        data_shape=(3, 32, 32), batch_size=9, resize=32,
    )  # fmt: skip
    (batch,) = reader
    assert sorted(batch.label[0].asnumpy()) == [0] * 6 + [1] * 3 and batch.pad == 0
    ours = Loader(
        open_imagenet(tmp_path / "out", size=32, crop_ratio=1.0),
        "train",
        LoaderOptions(9, seed=0),
        mx.cpu(),
        training=False,
    )
    (mine,) = ours.epoch(0)
    pixels = mine.images.asnumpy() * np.reshape(STD, (1, 3, 1, 1)) + np.reshape(MEAN, (1, 3, 1, 1))
    np.testing.assert_array_equal(mine.labels.asnumpy(), batch.label[0].asnumpy())
    assert np.abs(pixels - batch.data[0].asnumpy()).mean() < 3


@pytest.fixture
def im2rec(tmp_path):
    """Records as MXNet's im2rec writes them: grey, CMYK and large and small images as they are, no class list."""
    images = [smooth_image(60 + 20 * i, 50 + 10 * (i % 4), seed=i) for i in range(6)]
    images[1], images[2] = images[1].convert("L"), images[2].convert("CMYK")
    for split in ("train", "val"):
        paths = [str(tmp_path / f"{split}.{suffix}") for suffix in ("idx", "rec")]
        writer = mx.recordio.MXIndexedRecordIO(*paths, "w")
        for i, image in enumerate(images):
            if i == 0:
                content = mx.recordio.pack_img(
                    mx.recordio.IRHeader(0, 0.0, 0, 0), np.asarray(image)[:, :, ::-1], quality=95
                )
            else:
                content = mx.recordio.pack(mx.recordio.IRHeader(0, float(i), i, 0), encoded(image, quality=95))
            writer.write_idx(i, content)
        writer.close()
    return tmp_path, images


def test_records_of_im2rec_are_read(im2rec):
    folder, images = im2rec
    dataset = open_imagenet(folder, size=40, crop_ratio=0.8)
    assert dataset.classes == 1000
    (batch,) = Loader(dataset, "test", LoaderOptions(6, seed=0), mx.cpu(), training=False).epoch(0)
    assert batch.labels.asnumpy().tolist() == [0, 1, 2, 3, 4, 5]
    pixels = batch.images.asnumpy() * np.reshape(STD, (1, 3, 1, 1)) + np.reshape(MEAN, (1, 3, 1, 1))
    for shown, image in zip(pixels, images):
        scale = 50 / min(image.size)  # the short side becomes 40 / 0.8
        width, height = (round(side * scale) for side in image.size)
        left, top = (width - 40) // 2, (height - 40) // 2
        resized = image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
        expected = np.asarray(resized.crop((left, top, left + 40, top + 40)), np.float32).transpose(2, 0, 1)
        assert np.abs(shown - expected).mean() < 6


def test_class_folders_are_read_as_they_are(tmp_path):
    folder = make_folders(tmp_path)
    dataset = open_imagenet(folder, size=32)
    assert dataset.classes == 2
    seen = [
        batch.labels.asnumpy()
        for batch in Loader(dataset, "train", LoaderOptions(3, seed=0), mx.cpu(), training=True).epoch(0)
    ]
    assert sorted(np.concatenate(seen)) == [0, 0, 0, 1, 1, 1]
    limited = Loader(dataset, "test", LoaderOptions(2, seed=0, limit=2), mx.cpu(), training=False)
    assert [batch.labels.asnumpy().tolist() for batch in limited.epoch(0)] == [[0, 1]]  # of every class


def test_what_cannot_be_opened_is_named(tmp_path, im2rec):
    folder, _ = im2rec
    with pytest.raises(UserError, match=r"neither train\.rec nor train/.*--data-dir"):
        open_imagenet(tmp_path / "nowhere")
    for wrong in ("", "\n", "ant\nbee\n\n"):
        (folder / "classes.txt").write_text(wrong)
        with pytest.raises(UserError, match="is empty, or a line of it is"):
            open_imagenet(folder)
    (folder / "classes.txt").write_bytes(b"\xef\xbb\xbfant\r\nbee\r\n")  # as Windows writes it
    assert open_imagenet(folder).class_names == ["ant", "bee"]
    (folder / "classes.txt").write_text("ant\nbee\n")
    with pytest.raises(UserError, match="--classes 3: .* has 2 classes"):
        open_imagenet(folder, classes=3)
    with pytest.raises(UserError, match=r"record 2 of .*val\.rec has the label 2: .* 0 to 1, as there are 2 classes"):
        list(Loader(open_imagenet(folder), "test", LoaderOptions(6, seed=0), mx.cpu(), training=False).epoch(0))


@pytest.mark.parametrize("training", [False, True])
def test_a_broken_record_is_an_error_in_one_line(im2rec, training):
    folder, _ = im2rec
    content = bytearray((folder / "train.rec").read_bytes())
    start = content.index(b"\xff\xd8\xff")
    content[start : start + 200] = b"\1" * 200
    (folder / "train.rec").write_bytes(content)
    with pytest.raises(UserError, match=r"record 0 of .*train\.rec cannot be decoded") as raised:
        list(Loader(open_imagenet(folder), "train", LoaderOptions(6, seed=0), mx.cpu(), training=training).epoch(0))
    assert "\n" not in str(raised.value)


def drawn_windows(size, count=4000):
    """Heights, widths, tops and lefts of random windows in images of a size, in pixels."""
    content = [np.frombuffer(encoded(Image.new("RGB", size)), np.uint8)] * count
    starts, extents = RandomWindow().draw(content, np.random.default_rng(0))
    width, height = size
    return (extents * (height, width)).T, (starts * (height, width)).T


def test_random_windows_have_the_bounds_of_the_paper():
    (heights, widths), (tops, lefts) = drawn_windows((500, 375))
    share, aspect = heights * widths / (500 * 375), widths / heights
    assert 0.08 <= share.min() < 0.1 and 0.9 < share.max() <= 1.0001
    assert 0.7499 <= aspect.min() < 0.76 and 1.31 < aspect.max() <= 1.3334
    assert tops.min() >= 0 and (tops + heights).max() <= 375.001 and (lefts + widths).max() <= 500.001
    free = (heights < 370) & (widths < 495)
    places = tops[free] / (375 - heights[free]), lefts[free] / (500 - widths[free])
    assert abs(np.corrcoef(places)[0, 1]) < 0.06 and np.abs(np.mean(places, axis=1) - 0.5).max() < 0.02
    (heights, widths), _ = drawn_windows((400, 400))
    assert abs(np.log(widths / heights).mean()) < 0.01  # as often wide as narrow


def test_an_image_no_window_fits_into_shows_its_middle():
    (heights, widths), (_, lefts) = drawn_windows((1000, 50), count=200)
    fallback = heights == 50
    assert fallback.mean() > 0.5
    np.testing.assert_allclose(widths[fallback], 50 * 4 / 3, rtol=1e-4)
    np.testing.assert_allclose(lefts[fallback], (1000 - 50 * 4 / 3) / 2, rtol=1e-4)


def test_a_window_shows_that_part_of_the_image(tmp_path):
    folder = make_folders(tmp_path, count=4)
    dataset = open_imagenet(folder, size=32, lighting=0.0)
    loader = Loader(dataset, "train", LoaderOptions(8, seed=3), mx.cpu(), training=True)
    (batch,) = loader.epoch(0)
    contents, starts, extents, mirrored, _ = loader._inputs(0, 0)
    pixels = batch.images.asnumpy() * np.reshape(STD, (1, 3, 1, 1)) + np.reshape(MEAN, (1, 3, 1, 1))
    assert set(mirrored) == {0, 1}
    for shown, content, start, extent, mirror in zip(pixels, contents, starts, extents, mirrored):
        image = Image.open(io.BytesIO(content))
        size = np.array(image.size[::-1])
        top, left, bottom, right = *(start * size), *((start + extent) * size)
        expected = image.resize((32, 32), Image.Resampling.BILINEAR, box=(left, top, right, bottom))
        expected = np.asarray(expected, np.float32).transpose(2, 0, 1)
        assert np.abs(shown[:, :, :: -1 if mirror else 1] - expected).mean() < 8


def test_colours_vary_along_imagenets_axes():
    means, *factors = ColourJitter(MEAN, 0.0, 0.1).draw([b""] * 20_000, np.random.default_rng(0))
    assert not factors
    covariance = np.cov((means - MEAN).T) / 0.1**2
    deviations = np.sqrt(np.linalg.eigvalsh(covariance))[::-1]
    np.testing.assert_allclose(deviations, [55.46, 4.794, 1.148], rtol=0.05)
    assert covariance.min() > 900, "red, green and blue rise and fall together, above all"
    means, *factors = ColourJitter(MEAN, 0.4, 0.0).draw([b""] * 1000, np.random.default_rng(0))
    np.testing.assert_allclose(means, np.tile(MEAN, (1000, 1)), rtol=1e-6)
    assert np.min(factors) >= 0.6 and np.max(factors) <= 1.4 and np.ptp(factors, axis=1).min() > 0.7


def test_colour_jitter_scales_brightness_contrast_and_saturation(tmp_path):
    dataset = open_imagenet(make_folders(tmp_path), size=32, jitter=0.4)
    loader = Loader(dataset, "train", LoaderOptions(6, seed=3), mx.cpu(), training=True)
    plain = Loader(dataset._replace(colour=None), "train", LoaderOptions(6, seed=3), mx.cpu(), training=True)
    (changed,), (images,) = (list(each.epoch(0)) for each in (loader, plain))
    means, brightness, contrast, saturation = (
        value.reshape(6, -1, 1, 1) for value in loader._inputs(0, 0)[4:]
    )  # fmt: skip
    pixels = images.images.asnumpy() * np.reshape(STD, (1, 3, 1, 1)) + np.reshape(MEAN, (1, 3, 1, 1))
    grey = (pixels * np.reshape([0.299, 0.587, 0.114], (1, 3, 1, 1))).sum(axis=1, keepdims=True)
    expected = grey + saturation * (pixels - grey)
    expected = brightness * (128 + contrast * (expected - 128))
    expected = (expected - means) / np.reshape(STD, (1, 3, 1, 1))
    np.testing.assert_allclose(changed.images.asnumpy(), expected, atol=0.02)


def test_photographs_repeat_by_seed_and_can_be_entered_anywhere(tmp_path):
    dataset = open_imagenet(make_folders(tmp_path, count=6), size=32, jitter=0.4)

    def batches(first_step=0, **options):
        loader = Loader(dataset, "train", LoaderOptions(4, **options), mx.cpu(), training=True)
        return [batch.images.asnumpy() for batch in loader.epoch(1, first_step)]

    straight = batches(seed=1)
    np.testing.assert_array_equal(batches(seed=1, threads=1), straight)
    np.testing.assert_array_equal(batches(seed=1, first_step=2), straight[2:])
    assert np.abs(np.array(batches(seed=2)) - straight).max() > 0.1


def test_validation_shows_every_image_once_in_any_size(im2rec):
    folder, _ = im2rec
    for size in (224, 320):
        batches = list(
            Loader(open_imagenet(folder, size=size), "test", LoaderOptions(4, seed=0), mx.cpu(), training=False).epoch(
                0
            )
        )
        assert [batch.images.shape for batch in batches] == [(4, 3, size, size)] * 2
        labels = [label for batch in batches for label in batch.labels.asnumpy()[: batch.count]]
        assert labels == [0, 1, 2, 3, 4, 5]


def test_the_centre_window_is_the_crop_of_the_resized_image():
    content = [np.frombuffer(encoded(Image.new("RGB", size)), np.uint8) for size in ((500, 375), (300, 400))]
    starts, extents = CentreWindow(0.875).draw(content, None)
    np.testing.assert_allclose(extents, [[0.875, 0.875 * 375 / 500], [0.875 * 300 / 400, 0.875]], rtol=1e-6)
    np.testing.assert_allclose(starts, (1 - extents) / 2, rtol=1e-6)


def test_sizes_are_read_from_headers():
    images = [smooth_image(90, 60), smooth_image(31, 77)]
    contents = [encoded(images[0], progressive=True), encoded(images[0], comment="x" * 300), encoded(images[1], "PNG")]
    contents += [turned(images[0]), encoded(images[1].convert("L"))]
    arrays = [np.frombuffer(content, np.uint8) for content in contents]
    np.testing.assert_allclose(aspect_ratios(arrays), [1.5, 1.5, 31 / 77, 1.5, 31 / 77])
    with pytest.raises(ValueError, match="header"):
        aspect_ratios([np.frombuffer(b"\xff\xd8\xff\xe0\0\0", np.uint8)])


def test_real_photographs_are_prepared_and_read(tmp_path, photographs):
    summary = prepare(photographs, tmp_path / "out", val_share=0.1, jpeg=JpegOptions(64), workers=2)
    assert "180 images to train on, 20 to validate, 200 classes; converted: 3 grey" in summary
    loader = Loader(
        open_imagenet(tmp_path / "out", size=56), "test", LoaderOptions(20, seed=0), mx.cpu(), training=False
    )
    (batch,) = loader.epoch(0)
    assert abs(batch.images.asnumpy().mean()) < 0.4 and 0.6 < batch.images.asnumpy().std() < 1.4
