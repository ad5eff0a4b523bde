"""The ImageNet script from the shell: recipes, training, evaluation, and what it refuses."""

import csv
import functools
import json
import re
import shutil
import subprocess
import sys

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd, gluon

import imagenet_train
from data.dataset import Dataset
from data.imagenet import JpegOptions, prepare
from tests.conftest import ROOT, assert_refused, run_module, run_script
from tests.test_imagenet import make_folders
from training.commands import make_net
from training.flags import parse_arguments
from training.metrics import top_k_hits
from training.network_file import describe
from training.run.checkpoint import Checkpoints

train = functools.partial(run_script, "imagenet_train.py")


@pytest.fixture(scope="module")
def records(new_folder, photographs):
    """The 200 photographs as records, half of them to validate on."""
    folder = new_folder("records") / "out"
    prepare(photographs, folder, val_share=0.5, jpeg=JpegOptions(short_side=64), workers=2)
    return folder


SMALL = ("--input-size", 64, "--batch-size", 8, "--limit", 16, "--epochs", 1, "--seed", 1)


@pytest.fixture(scope="module")
def finished(new_folder, records):
    """A finished training with the tricks recipe: (log folder, its process)."""
    folder = new_folder("log")
    process = train(
        *("--data-dir", records, "--log-dir", folder, *SMALL, "--model", "attentionnext"),
        *("--recipe", "tricks", "--warmup-epochs", 0.5, "--crop-ratio", 0.75),
    )
    assert process.returncode == 0, process.stderr
    return folder, process


def test_a_run_has_the_networks_name_and_a_top5_column(finished):
    folder, process = finished
    (path,) = (folder / "text").glob("*.csv")
    assert re.fullmatch(r"imagenet_attentionnext56_\d{12}", path.stem)
    header, *rows = csv.reader(path.open())
    assert ",".join(header) == (
        "epoch,train_loss,train_metric,val_loss,val_accuracy,lr,images_per_second,seconds,val_top5"
    )
    ((_, _, _, _, accuracy, *_, top5),) = rows
    assert 0 <= float(accuracy) <= float(top5) <= 1
    assert process.stdout.splitlines()[-1].startswith("Finished: best validation accuracy 0.")
    assert "top-5 0." in process.stdout


def test_saved_parameters_are_evaluated_at_any_size(finished, records):
    folder, _ = finished
    (params,) = (folder / "params").glob("*/last.params")
    (path,) = (folder / "text").glob("*.csv")
    with path.open() as file:
        (row,) = csv.DictReader(file)
    flags = ("--data-dir", records, "--eval-only", "--params", params, "--limit", 16, "--out", folder / "seen")
    process = train(*flags, "--log-dir", folder / "none")  # in the size and with the crop that network.json names
    assert process.returncode == 0, process.stderr
    loss, accuracy, top5 = (float(row[column]) for column in ("val_loss", "val_accuracy", "val_top5"))
    words = process.stdout.split()
    assert words[:3] == [str(params), "at", "64x64:"]
    assert [float(word) for word in words[4:10:2]] == pytest.approx([loss, accuracy, top5], rel=1e-4, abs=1e-4)
    assert not (folder / "none").exists()
    assert {path.name for path in (folder / "seen").iterdir()} == {"last-confusion.png", "last-mistakes.png"}
    process = train(*flags, "--input-size", 96)
    assert process.returncode == 0 and "at 96x96" in process.stdout


def test_labels_among_the_first_guesses_are_found():
    logits = mx.nd.array([[9, 8, 7, 6, 5, 4, 3], [3, 4, 5, 6, 7, 8, 9], [0, 0, 0, 0, 0, 0, 1]])
    np.testing.assert_array_equal(top_k_hits(logits, mx.nd.array([4, 1, 6]), 5).asnumpy(), [1, 0, 1])
    np.testing.assert_array_equal(top_k_hits(logits[:, :3], mx.nd.array([2, 0, 1]), 5).asnumpy(), [1, 1, 1])


def parsed(*argv):
    """What the script's flags are with a command line."""
    code = (
        "import imagenet_train, json, sys; from training.flags import parse_arguments\n"
        "args = vars(parse_arguments(imagenet_train.flags()))\n"
        "assert not {'mxnet', 'numpy', 'nvidia'} & set(sys.modules)\n"
        "print(json.dumps(args))"
    )
    process = subprocess.run([sys.executable, "-c", code, *argv], cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(process.stdout)


def test_recipes_are_defaults_that_flags_override():
    paper, tricks = parsed(), parsed("--recipe", "tricks", "--epsilon", "0.2")
    shared = {"optimizer": "nag", "momentum": 0.9, "wd": 1e-4, "input_size": 224, "crop_ratio": 0.875, "lighting": 0.1}
    for args in (paper, tricks):
        assert {name: args[name] for name in shared} == shared
    expected = {
        "lr": 0.1, "lr_mode": "step", "lr_steps": [40, 80, 100], "mix_up": 0, "epsilon": 0, "no_wd": False,
        "last_gamma": False, "epochs": 106, "batch_size": 32,
    }  # fmt: skip
    assert {name: paper[name] for name in expected} == expected
    expected = {
        "lr": 0.1 * 64 / 256, "lr_mode": "cosine", "warmup_epochs": 5, "mix_up": 1, "alpha": 0.2, "epsilon": 0.2,
        "no_wd": True, "last_gamma": True, "batch_size": 64, "colour_jitter": 0.4,
    }  # fmt: skip
    assert {name: tricks[name] for name in expected} == expected
    without = parsed("--recipe", "tricks", "--wd-all", "--no-last-gamma")
    assert (without["no_wd"], without["last_gamma"]) == (False, False)
    assert parsed("--no-wd", "--last-gamma")["settings"].items() >= {"no_wd": True, "last_gamma": True}.items()


def test_what_cannot_work_is_refused_in_one_line(tmp_path, finished, records):
    (params,) = (finished[0] / "params").glob("*/last.params")
    here = ("--data-dir", records, "--log-dir", tmp_path / "log")
    assert_refused(train(*here, "--input-size", 100), "--input-size 100", "32")
    assert_refused(train(*here, "--model", "vgg"), "vgg", "attentionnext")
    assert_refused(train(*here, "--classes", 10), "--classes 10", "200")
    assert_refused(train("--data-dir", tmp_path), "--data-dir")
    assert_refused(train(*here, "--eval-only"), "--params")
    assert_refused(train(*here, "--eval-only", "--params", tmp_path / "none"), "none", "No such file")
    (tmp_path / "text").write_text("no parameters")
    assert_refused(train(*here, "--eval-only", "--params", tmp_path / "text"), "network.json", "missing")
    shutil.copy(params.with_name("network.json"), tmp_path)
    assert_refused(
        train(*here, "--eval-only", "--params", tmp_path / "text"), "text", "it is no file of MXNet's arrays"
    )
    assert_refused(train(*here, "--eval-only", "--params", params, "--num-layers", 92), "--num-layers 92", "of 56")
    assert_refused(train(*here, "--eval-only", "--params", params, "--model", "attention"), "is of resnext")
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize("no_wd", [False, True])
def test_no_wd_spares_biases_gammas_and_betas(no_wd):
    """A step without a gradient halves what decays."""
    photographs = Dataset("three", 3, {}, 64, (0.0,) * 3, (1.0,) * 3, mirror=True)
    net = make_net(describe(photographs, "imagenet", 56, "se"), last_gamma=False, no_wd=no_wd)
    net.initialize()
    parameters = {name: value for name, value in net.collect_params().items() if value.grad_req != "null"}
    for value in parameters.values():
        value.set_data(mx.nd.ones(value.shape))
    with autograd.record():
        logits = net(mx.nd.zeros((1, 3, 64, 64)))
    logits.backward(mx.nd.zeros_like(logits))
    gluon.Trainer(parameters, "sgd", {"learning_rate": 0.5, "wd": 1.0}).step(1)
    found = {}
    for name, value in parameters.items():
        found.setdefault(name.rpartition("_")[2], set()).update(value.data().asnumpy().ravel().tolist())
    spared = {1.0} if no_wd else {0.5}
    assert found == {"weight": {0.5}, "bias": spared, "gamma": spared, "beta": spared}


@pytest.mark.parametrize(
    "flags, begun",
    [
        (("--no-wd", "--last-gamma"), {"weight": {0}, "gamma": {0, 1}}),
        (("--recipe", "tricks", "--warmup-epochs", 0, "--lr-mode", "step", "--wd-all"), {"weight": {0}, "gamma": {0}}),
    ],
    ids=["no-wd", "wd-all"],
)
def test_weight_decay_and_last_gamma_are_what_the_flags_say(records, tmp_path, flags, begun):
    """After one step with hardly any gradient what decays is zero, and all else is still what it began as."""
    process = train(
        *("--data-dir", records, "--log-dir", tmp_path, *SMALL, *flags, "--run-name", "decay", "--limit", 8),
        *("--lr", "1e-9", "--wd", "1e9", "--momentum", 0, "--optimizer", "sgd", "--model", "attentionnext"),
    )
    assert process.returncode == 0, process.stderr
    saved = mx.nd.load(str(tmp_path / "params" / "decay" / "last.params"))
    for kind, expected in begun.items():
        values = {name: value.asnumpy() for name, value in saved.items() if name.endswith(kind)}
        assert {
            round(float(number), 3) for value in values.values() for number in (value.min(), value.max())
        } == expected
    if "--no-wd" in flags:
        zeros = [name for name, value in saved.items() if name.endswith("gamma") and not value.asnumpy().round(3).any()]
        assert {name.rpartition(".branch.")[2] for name in zeros} == {"2.gamma"} and len(zeros) == 33


def test_a_checkpoint_cannot_have_a_file_evaluated(finished, tmp_path):
    folder = tmp_path / "log"
    shutil.copytree(finished[0], folder)
    (run,) = (folder / "params").iterdir()
    checkpoint, _ = Checkpoints(run).newest_whole()
    for strange in ({"eval_only": True}, {"params": str(run / "best.params")}):
        settings = {**checkpoint.facts["settings"], **strange}
        Checkpoints(run).save(checkpoint.arrays(), {**checkpoint.facts, "settings": settings}, checkpoint.path)
        process = train("--resume", run)
        assert_refused(process, "was not trained by this script", "is not for a checkpoint to say")
        assert process.stdout == ""


def test_a_training_resumes_with_one_more_epoch_as_if_it_had_never_ended(tmp_path, records):
    flags = ("--data-dir", records, "--log-dir", tmp_path, *SMALL)
    for more in (("--run-name", "whole", "--epochs", 2), ("--run-name", "parts"), ("--resume", "parts", "--epochs", 2)):
        process = train(*flags, *more)
        assert process.returncode == 0, process.stderr

    def parameters(name):
        return mx.nd.load(str(tmp_path / "params" / name / "last.params"))

    whole, parts = parameters("whole"), parameters("parts")
    assert all(np.array_equal(whole[name].asnumpy(), parts[name].asnumpy()) for name in whole)
    rows = [list(csv.DictReader((tmp_path / "text" / f"{name}.csv").open())) for name in ("whole", "parts")]
    assert len(rows[0]) == len(rows[1]) == 2
    for one, other in zip(*rows):
        assert all(one[column] == other[column] for column in one if column not in ("images_per_second", "seconds"))


def test_the_flags_of_photographs_reach_the_data_set(tmp_path):
    flags = ["--data-dir", str(make_folders(tmp_path)), "--input-size", "64", "--crop-ratio", "0.5"]
    flags += ["--colour-jitter", "0.3", "--lighting", "0.2"]
    dataset = imagenet_train.open_photographs(parse_arguments(imagenet_train.flags(), flags))
    found = dataset.size, dataset.validation_crop.crop_ratio, dataset.colour.jitter, dataset.colour.lighting
    assert found == (64, 0.5, 0.3, 0.2)


def test_class_folders_are_trained_on_and_predicted_by_name(tmp_path):
    folder = make_folders(tmp_path / "photos", count=4)
    flags = ("--input-size", 64, "--batch-size", 4, "--epochs", 1, "--seed", 1, "--lr", 0.01, "--run-name", "photos")
    process = train("--data-dir", folder, "--log-dir", tmp_path, *flags)
    assert process.returncode == 0, process.stderr
    params = tmp_path / "params" / "photos" / "last.params"
    process = run_module("scripts.predict", "--params", params, folder / "val", "--json")
    lines = [json.loads(line) for line in process.stdout.splitlines()]
    assert process.returncode == 0 and len(lines) == 8
    assert all({guess["class"] for guess in line["predictions"]} == {"ant", "bee"} for line in lines)
