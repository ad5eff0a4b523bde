"""What uses saved parameters: predictions, evaluation, and pictures of the attention."""

import dataclasses
import functools
import json
import subprocess
import sys
from types import SimpleNamespace

import cv2
import mxnet as mx
import numpy as np
import pytest
from PIL import Image

from base.errors import UserError
from data.augmentation import CentreWindow
from data.cifar import open_cifar
from data.loader import Loader, LoaderOptions, ShardedLoader
from data.records import Records
from data.views import list_pictures, normalized, read_view
from model import get_attention_cifar
from tests.conftest import assert_refused, run_module, run_script
from tests.test_training import READ_EVENTS
from training import attention_pictures
from training.commands import flags_of, load_for_evaluation
from training.distributed.process_group import SingleProcess
from training.evaluation import WORST, Findings, class_table
from training.learner import mirror_averaged, validate
from training.network_file import describe, load_network, make_network
from training.pictures import draw_channels, draw_confusion, draw_masks, verdict
from training.prediction import Example, batch_examples, check_classes, held_out_examples, network_input
from training.run.exports import Exports

predict = functools.partial(run_module, "scripts.predict")
visualize = functools.partial(run_module, "scripts.visualize_attention")


@pytest.fixture(scope="module")
def params(new_folder, digits):
    """The path of a network's parameters, as a training would write them, that has not learned anything."""
    folder = new_folder("run")
    description = describe(digits, "cifar", 56, "bottleneck")
    net = make_network(description)
    mx.random.seed(3)
    net.initialize(mx.init.MSRAPrelu())
    Exports(folder, 0, description).save(net, 1, 1, 0.1)
    return folder / "best.params"


@pytest.fixture(scope="module")
def images(new_folder, digits):
    """A folder of the first eight held-out digits, as PNG."""
    folder = new_folder("images")
    for number, content in enumerate(Records(digits.records["test"]).encoded(range(8))):
        (folder / f"{number}.png").write_bytes(content.tobytes())
    return folder


@pytest.fixture(scope="module")
def log_probabilities(params, digits):
    """What the network itself gives for the first held-out digits: (8, 10)."""
    net = get_attention_cifar(10, 56)
    net.load_parameters(str(params))
    (batch,) = Loader(digits, "test", LoaderOptions(8, seed=0, limit=8), mx.cpu(), training=False).epoch(0)
    return net(batch.images).log_softmax().asnumpy()


def test_predictions_are_those_of_the_network_on_the_loaders_images(params, images, log_probabilities):
    process = predict("--params", params, images, "--json", "--top", 10, "--batch-size", 3)
    assert (process.returncode, process.stderr) == (0, "")
    lines = [json.loads(line) for line in process.stdout.splitlines()]
    assert [line["path"] for line in lines] == [str(images / f"{number}.png") for number in range(8)]
    for line, expected in zip(lines, np.exp(log_probabilities)):
        found = {entry["class"]: entry["probability"] for entry in line["predictions"]}
        np.testing.assert_allclose([found[name] for name in "0123456789"], expected, atol=1e-4)
        assert line["predictions"][0]["class"] == str(expected.argmax())


def test_what_is_no_image_is_named_and_the_others_are_done(params, images, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    paths = [images / "0.png", tmp_path / "broken.png", tmp_path / "none.png", tmp_path, images / "1.png"]
    paths.remove(tmp_path)
    process = predict("--params", params, *paths, "--attention", tmp_path / "seen")
    assert process.returncode == 2
    assert [line.split(": ")[0] for line in process.stdout.splitlines()] == [str(paths[0]), str(paths[-1])]
    assert [line.split(": ")[1] for line in process.stderr.splitlines()] == [
        f"cannot read {tmp_path / name}.png" for name in ("broken", "none")
    ]
    assert {path.name for path in (tmp_path / "seen").iterdir()} == {"0-masks.png", "1-masks.png"}


def test_classes_of_other_names_are_refused(digits):
    letters = describe(digits._replace(class_names="abcdefghij"), "cifar", 56, "bottleneck")
    for dataset, description, words in (
        (digits._replace(class_names="abcdefghik"), letters, "k in the place of j"),
        (digits, letters, "0 in the place of a"),
        (digits._replace(class_names="abcdefghij"), describe(digits, "cifar", 56, "bottleneck"), "a in the place of 0"),
    ):
        with pytest.raises(UserError, match=words):
            check_classes(dataset, description)
    check_classes(digits._replace(class_names="abcdefghij"), letters)
    check_classes(digits._replace(class_names=None), letters)  # whose names nobody knows
    records = describe(digits._replace(name="imagenet", class_names=None), "cifar", 56, "bottleneck")
    check_classes(digits._replace(name="imagenet", class_names="abcdefghij"), records)


def test_a_folder_that_links_to_itself_is_read_once(tmp_path):
    (tmp_path / "a.png").touch()
    (tmp_path / "self").symlink_to(tmp_path)
    (tmp_path / ".thumbnails").mkdir()
    (tmp_path / ".thumbnails" / "a.png").touch()
    assert list_pictures([tmp_path]) == [str(tmp_path / "a.png")]


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK"])
def test_images_of_any_mode_are_seen_in_rgb(tmp_path, mode):
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, 30:] = 255
    path = tmp_path / ("image.tiff" if mode == "CMYK" else "image.png")
    Image.fromarray(pixels).convert(mode).save(path)
    view = read_view(path, 16, 1.0)
    assert view.shape == (16, 16, 3) and view[:, :7].max() <= 2 and view[:, 9:].min() >= 253


def test_turned_images_are_seen_upright(tmp_path):
    pixels = np.zeros((60, 60, 3), np.uint8)
    pixels[:30] = 255  # white above
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it
    Image.fromarray(np.rot90(pixels)).save(tmp_path / "turned.png", exif=exif)
    view = read_view(tmp_path / "turned.png", 16, 1.0)
    assert view[:7].min() == 255 and view[9:].max() == 0


@pytest.mark.parametrize("shape", [(100, 150), (230, 97), (64, 64), (20, 33)])
def test_a_view_is_what_the_loader_validates_on(tmp_path, shape, digits):
    draw = np.random.default_rng(0)
    pixels = cv2.resize(draw.integers(0, 256, (6, 9, 3), dtype=np.uint8), shape[::-1], interpolation=cv2.INTER_CUBIC)
    (tmp_path / "test" / "class").mkdir(parents=True)
    Image.fromarray(pixels).save(tmp_path / "test" / "class" / "image.png")
    dataset = digits._replace(records={"test": tmp_path / "test"}, size=64, validation_crop=CentreWindow(0.875))
    (batch,) = Loader(dataset, "test", LoaderOptions(1, seed=0), mx.cpu(), training=False).epoch(0)
    view = read_view(tmp_path / "test" / "class" / "image.png", 64, 0.875)
    found = normalized([view], dataset.mean, dataset.std)
    difference = abs(found - batch.images.asnumpy()) * dataset.std[0]
    assert difference.max() <= 2  # of 255


def test_each_image_is_drawn_with_its_own_masks(params, tmp_path, monkeypatch):
    net, description = load_network(params)
    draw = np.random.default_rng(0)
    examples = [Example(str(number), draw.integers(0, 256, (32, 32, 3), dtype=np.uint8), None) for number in range(3)]
    drawn, shown = [], []
    images = network_input(net, [each.view for each in examples], description)
    masks = attention_pictures.masks_of(net, images)
    said = attention_pictures.verdicts(net, images, description, examples)
    monkeypatch.setattr(attention_pictures, "BATCH", 2)
    monkeypatch.setattr(
        attention_pictures, "draw_channels", lambda view, own, caption: drawn.append((view, own, caption))
    )
    monkeypatch.setattr(attention_pictures, "draw_masks", lambda views, own, captions: shown.append((views, own)))
    monkeypatch.setattr(attention_pictures, "save_picture", lambda figure, path: None)
    artist = attention_pictures.AttentionArtist(net, description, tmp_path)
    assert len(list(artist.each(examples, features=False))) == 3
    artist.overview(examples)
    ((views, together),) = shown
    assert [caption for *_, caption in drawn] == said and len(set(said)) > 1
    for number, (view, own, _) in enumerate(drawn):
        assert view is examples[number].view and views[number] is view
        for name, mask in masks.items():
            np.testing.assert_allclose(own[name], mask[number], rtol=1e-4, atol=1e-6)
            np.testing.assert_array_equal(together[name], mask)


def test_the_overview_shows_the_mean_mask_of_each_row():
    views = np.zeros((2, 4, 4, 3), np.uint8)
    masks = {"module": np.stack([np.full((2, 4, 4), 0.25), np.full((2, 4, 4), 0.75)])}
    figure = draw_masks(views, masks, ["first", "second"])
    heat = [image for axes in figure.axes for image in axes.images if image.get_alpha() is not None]
    assert [float(image.get_array().mean()) for image in heat] == [0.25, 0.75]


def test_every_module_is_drawn_for_every_image(params, digits, tmp_path):
    sets = digits.records["train"].parents[2]
    process = visualize("--params", params, "--data-dir", sets, "--count", 2, "--out", tmp_path / "new" / "out")
    assert process.returncode == 0, process.stderr
    names = ["overview-masks.png", *(f"digits-{i}-{what}.png" for i in range(2) for what in ("masks", "features"))]
    assert [line.rpartition("/")[2] for line in process.stdout.splitlines()] == names
    for path in map(str, (tmp_path / "new" / "out").iterdir()):
        picture = cv2.imread(path)
        assert min(picture.shape[:2]) > 400 and picture.std() > 10


def test_files_are_drawn_and_what_is_none_is_named(params, images, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"")
    process = visualize("--params", params, "--images", images / "3.png", tmp_path / "broken.png", "--out", tmp_path)
    assert_refused(process, str(tmp_path / "broken.png"), "empty")
    assert (tmp_path / "3-masks.png").exists() and (tmp_path / "3-features.png").exists()


def test_what_cannot_work_is_refused_in_one_line(params, images, tmp_path, digits):
    sets = digits.records["train"].parents[2]
    (tmp_path / "file").write_text("")
    assert_refused(predict("--params", tmp_path / "none.params", images), "none.params", "No such file")
    assert_refused(predict("--params", params, tmp_path), str(tmp_path), "holds no image")
    below = images / "drawn"
    assert_refused(predict("--params", params, images, "--attention", below), f"{below} is in the folder of the images")
    assert_refused(visualize("--params", params, "--images", images, "--out", images), "is in the folder of the images")
    assert not below.exists()
    here = ("--params", params, "--data-dir", sets, "--count", 1)
    assert_refused(visualize(*here, "--out", tmp_path / "file"), "file")
    assert_refused(visualize(*here, "--dataset", "digits", "--images", images, "--out", tmp_path), "exclude")


def test_an_evaluation_agrees_with_the_network(params, digits, log_probabilities, tmp_path):
    sets = digits.records["train"].parents[2]
    flags = ("--eval-only", "--params", params, "--data-dir", sets, "--limit", 8, "--out", tmp_path)
    process = run_script("cifar10_train.py", *flags)
    assert process.returncode == 0, process.stderr
    first, header, *rows, confusion, mistakes = process.stdout.splitlines()
    labels = Records(digits.records["test"]).labels(range(8)).astype(int)
    predicted = log_probabilities.argmax(axis=1)
    loss = -log_probabilities[range(8), labels].mean()
    assert first == f"{params} at 32x32: loss {loss:.4f}  accuracy {(predicted == labels).mean():.4f}"
    assert header.split()[:4] == ["class", "images", "recall", "precision"] and len(rows) == 10
    assert [int(row.split()[1]) for row in rows] == np.bincount(labels, minlength=10).tolist()
    assert [confusion, mistakes] == [str(tmp_path / f"best-{name}.png") for name in ("confusion", "mistakes")]
    assert all(cv2.imread(path).std() > 10 for path in (confusion, mistakes))
    assert_refused(run_script("cifar10_train.py", *flags, "--num-layers", 92), "--num-layers 92", "of 56")
    assert_refused(run_script("cifar10_train.py", *flags, "--epochs", 7), "--eval-only trains nothing", "--epochs")
    assert_refused(run_script("cifar10_train.py", "--eval-only"), "--params")


def test_findings_count_and_rank_mistakes(digits):
    (batch,) = Loader(digits, "test", LoaderOptions(5, seed=0, limit=3), mx.cpu(), training=False).epoch(0)
    labels = batch.labels.asnumpy().astype(int)[:3]
    logits = np.zeros((3, 10))
    logits[0, labels[0]] = 9
    logits[1, (labels[1] + 1) % 10] = 1
    logits[2, (labels[2] + 1) % 10] = 5
    findings = Findings(digits)
    findings.add(batch, mx.nd.array(logits))
    expected = np.zeros((10, 10), int)
    for label, step in zip(labels, (0, 1, 1)):
        expected[label, (label + step) % 10] += 1
    np.testing.assert_array_equal(findings.matrix, expected)
    worst = findings.worst()
    assert [example.true for example, *_ in worst] == [labels[2], labels[1]]
    assert [taken for _, taken, _ in worst] == [(labels[2] + 1) % 10, (labels[1] + 1) % 10]


def test_of_many_equal_mistakes_the_first_are_kept(digits):
    (batch,) = Loader(digits, "test", LoaderOptions(3, seed=0, limit=3), mx.cpu(), training=False).epoch(0)
    wrong = (batch.labels + 1) % 10
    findings = Findings(digits)
    for probability in (100, *[200] * 8):  # a true class of the probability 0 each time
        findings.add(batch, probability * wrong.one_hot(10))
    worst = findings.worst()
    assert len(worst) == WORST < findings.matrix.sum()
    seen = [example.view.tobytes() for example in batch_examples(batch, digits)]
    assert [example.view.tobytes() for example, *_ in worst[:3]] == seen and len(set(seen)) == 3


def test_captions_say_what_is_true_and_what_it_was_taken_for():
    assert verdict("cat", 0.421, "dog") == "true dog\ntaken for cat 42%"
    assert verdict("cat", 0.421, "cat") == "true cat\npredicted cat 42%"
    assert verdict("cat", 0.421) == "cat 42%"


def test_a_confusion_matrix_has_true_classes_down():
    figure = draw_confusion(np.array([[3, 1], [0, 2]]), ["cat", "dog"])
    (axes, *_) = figure.axes
    np.testing.assert_array_equal(axes.images[0].get_array(), [[0.75, 0.25], [0, 1]])
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("true class", "predicted class")
    assert {text.get_position(): text.get_text() for text in axes.texts}[1, 0] == "1"  # column, row


def test_channels_are_the_most_and_the_least_active():
    masks = {"module": np.stack([np.full((4, 4), value) for value in (0.5, 0.875, 0.25)])}
    figure = draw_channels(np.zeros((4, 4, 3), np.uint8), masks, "caption")
    shown = {axes.get_title(): float(axes.images[1].get_array().mean()) for axes in figure.axes if len(axes.images) > 1}
    assert [value for title, value in shown.items() if "most active channel, 1" in title] == [0.875]
    assert [value for title, value in shown.items() if "least active channel, 2" in title] == [0.25]


def test_a_network_without_masks_has_no_artist(digits, tmp_path):
    for description in (describe(digits, "resnet", 20, "bottleneck"), describe(digits, "cifar", 56, "bottleneck")):
        description = dataclasses.replace(description, mask="none") if description.attends else description
        with pytest.raises(UserError, match="no masks"):
            attention_pictures.AttentionArtist(None, description, tmp_path / "pictures")
    assert not (tmp_path / "pictures").exists()


def test_pictures_of_files_of_one_name_have_names_of_their_own(params, tmp_path):
    artist = attention_pictures.AttentionArtist(None, load_network(params)[1], tmp_path)
    assert [artist._stem(name) for name in ("a/x.png", "b/x.jpg", "overview.png")] == ["x", "x_2", "overview_2"]


def test_a_class_table_has_recall_and_precision():
    table = class_table(np.array([[3, 1, 0], [0, 0, 0], [2, 0, 2]]), ("cat", "dog", "horse")).splitlines()
    assert [line.split() for line in table[1:]] == [
        ["cat", "4", "0.7500", "0.6000", "dog", "(1)"],
        ["dog", "0", "-", "0.0000"],
        ["horse", "4", "0.5000", "1.0000", "cat", "(2)"],
    ]


def test_held_out_images_come_with_their_class(digits):
    sets = digits.records["train"].parents[2]
    examples = held_out_examples("digits", sets, 3, describe(digits, "cifar", 56, "bottleneck"))
    records = Records(digits.records["test"])
    for number, (example, content) in enumerate(zip(examples, records.encoded(range(3)))):
        assert isinstance(example, Example) and example.name == f"digits-{number}"
        assert example.true == int(records.labels([number])[0])
        np.testing.assert_array_equal(example.view, cv2.imdecode(content, cv2.IMREAD_COLOR))


def test_a_training_shows_its_masks_and_learns_the_same(digits, tmp_path):
    sets = digits.records["train"].parents[2]
    flags = ("--dataset", "digits", "--data-dir", sets, "--log-dir", tmp_path, "--limit", 16, "--batch-size", 8)
    flags += ("--epochs", 2, "--seed", 1)
    for name, period in (("seen", 1), ("unseen", 0)):
        process = run_script("cifar10_train.py", *flags, "--run-name", name, "--viz-period", period)
        assert process.returncode == 0, process.stderr
    read = [
        sys.executable,
        "-c",
        READ_EVENTS.replace("steps = [", 'steps = [event.step for event in events.Images("attention_masks")]\n_ = ['),
        tmp_path / "board" / "seen",
    ]
    _, images, _, steps = json.loads(subprocess.run(read, capture_output=True, text=True, check=True).stdout)
    assert (images, steps) == (["training_images", "attention_masks"], [1, 2])
    one, other = ((tmp_path / "params" / name / "last.params").read_bytes() for name in ("seen", "unseen"))
    assert one == other


def test_an_evaluation_takes_the_mean_over_mirror_images_where_it_is_told_to(real_images, tmp_path):
    dataset = open_cifar("cifar10", real_images)
    description = describe(dataset, "resnet", 11, "bottleneck")
    net = make_network(description)
    mx.random.seed(3)
    net.initialize(mx.init.MSRAPrelu())
    net(mx.nd.zeros((1, 3, 32, 32)))
    net.output.weight.set_data(30 * net.output.weight.data())  # or the two losses would hardly differ
    Exports(tmp_path, 0, description).save(net, 1, 1, 0.1)
    loader = ShardedLoader(dataset, "test", LoaderOptions(32, seed=0, limit=32), [mx.cpu()], training=False)
    flags = ("--eval-only", "--params", tmp_path / "best.params", "--data-dir", real_images, "--limit", 32)
    expected = []
    for averaged, tta in ((net, ()), (mirror_averaged(net), ("--tta",))):
        process = run_script("cifar10_train.py", *flags, *tta)
        assert process.returncode == 0, process.stderr
        expected.append(validate(averaged, loader, "float32", SingleProcess([mx.cpu()]))["loss"])
        assert float(process.stdout.split()[4]) == pytest.approx(expected[-1], rel=1e-4)
    assert expected[0] != pytest.approx(expected[1], rel=1e-3), "or nothing was compared"


def test_an_evaluation_takes_flags_that_are_its_networks_and_no_others(tmp_path, digits):
    description = describe(digits, "resnet", 20, "bottleneck")
    net = make_network(description)
    net.initialize(mx.init.MSRAPrelu())
    Exports(tmp_path, 0, description).save(net, 1, 1, 0.1)
    args = SimpleNamespace(params=tmp_path / "best.params", dataset="digits", given=[], unit="resnet", num_layers=20)
    args.given = ["unit", "num_layers"]
    assert load_for_evaluation(args, [mx.cpu()], ["digits"])[1].family == "resnet"
    args.unit = "bottleneck"
    with pytest.raises(UserError, match="--unit bottleneck: .* is of resnet"):
        load_for_evaluation(args, [mx.cpu()], ["digits"])
    args.given, args.mask = ["mask"], "local"
    with pytest.raises(UserError, match="--mask local: .* has nothing of the kind"):
        load_for_evaluation(args, [mx.cpu()], ["digits"])
    variant = {"num_layers": 56, "unit": "se", "attention": "channel", "learning": "naive", "mask": "local"}
    for modules in ((2, 1, 1), None):
        fields = {name: value for name, value in variant.items() if name != "num_layers"}
        described = describe(digits, "cifar", 56, **fields, modules=modules)
        assert flags_of(described) == variant | {"modules": list(modules or (1, 1, 1))}


def test_json_names_what_is_no_image(params, images, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    process = predict("--params", params, tmp_path / "broken.png", images / "0.png", "--json")
    assert process.returncode == 2 and process.stderr.count("\n") == 1
    broken, whole = map(json.loads, process.stdout.splitlines())
    assert broken.keys() == {"path", "error"} and broken["path"] == str(tmp_path / "broken.png") and broken["error"]
    assert whole["path"] == str(images / "0.png") and len(whole["predictions"]) == 5, "--top's default"
