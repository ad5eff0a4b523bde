"""The benchmark prints what it promises, and its yardstick is all of the network's convolutions."""

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from base.runtime import THREAD_VARIABLES, real_core_count
from model import get_attention_cifar, get_attention_net
from model.summary import multiply_adds
from scripts.measurements import as_block, chains, ready_net
from tests.conftest import ROOT
from tests.test_model import operators


def benchmark(*flags, script=("-m", "scripts.benchmark")):
    command = [sys.executable, *script, "--batch-size", "2", "--input-size", "16", "--rounds", "1", *flags]
    environ = {name: value for name, value in os.environ.items() if name not in THREAD_VARIABLES}
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)


def printed(*flags, **options):
    process = benchmark(*flags, **options)
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.mark.parametrize(
    "get_net, depth, size",
    [(get_attention_cifar, 56, 32), (get_attention_cifar, 92, 40), (get_attention_net, 56, 224)],
)
def test_the_chains_are_all_of_the_networks_convolutions(get_net, depth, size):
    classes, batch = 10, 2
    net = get_net(classes, depth)
    shape = (batch, 3, size, size)
    dense = batch * classes * net.channels[-1]
    in_chains = sum(multiply_adds(as_block(chain), chain[0].read) for chain in chains(net, shape))
    assert in_chains == multiply_adds(net, shape) - dense


def test_one_form_is_measured_beside_its_convolutions():
    text = printed(script=["scripts/benchmark.py"])
    title, form, training, inference, memory = text.splitlines()
    assert title == "Attention-56, cifar, 16x16, batch 2"
    assert form == f"fast form, OMP_NUM_THREADS {real_core_count()}"
    number = r"\d+\.\d+"
    assert re.fullmatch(
        rf"  training +{number} images/s   step {number} s, {number} times its convolutions' {number} s", training
    )
    assert re.fullmatch(rf"  inference +{number} images/s   \d+ % of its convolutions' speed", inference)
    assert re.fullmatch(rf"  peak memory +{number} GB in training", memory)


def test_both_forms_are_measured_and_compared():
    figures = json.loads(printed("--plain", "--json"))
    assert list(figures) == ["fast", "plain", "fast_to_plain"]
    for form in ("fast", "plain"):
        seconds = {name: values[0] for name, values in figures[form]["seconds"].items()}
        assert figures[form]["training_images_per_second"] == pytest.approx(2 / seconds["training"])
        assert figures[form]["step_to_convolutions"] == pytest.approx(seconds["training"] / seconds["convolutions"])
        forward = seconds["convolutions forward"] / seconds["inference"]
        assert figures[form]["inference_to_convolutions"] == pytest.approx(forward)
        assert 1e8 < figures[form]["peak_memory"] < 1e10
    assert figures["fast"]["omp_num_threads"] == str(real_core_count())
    assert figures["plain"]["omp_num_threads"] is None  # MXNet decides
    speeds = [figures[form]["inference_images_per_second"] for form in ("fast", "plain")]
    assert figures["fast_to_plain"]["inference"] == pytest.approx(speeds[0] / speeds[1])


def test_the_plain_form_has_mxnets_own_operators_and_the_fast_one_has_not():
    def has(form):
        args = argparse.Namespace(form=form, net="cifar", num_layers=56)
        counted = operators(ready_net(args)[0])
        return {name for name in ("_contrib_BilinearResize2D", "_contrib_BatchNormWithReLU") if counted[name]}

    assert has("plain") == {"_contrib_BilinearResize2D"}
    assert has("fast") == {"_contrib_BatchNormWithReLU"}


def test_the_loader_is_measured_alone_and_beside_a_training():
    figures = json.loads(printed("--loader", "--json"))
    assert figures["images"] == 200
    assert figures["loader_images_per_second"] == pytest.approx(200 / figures["seconds"]["loader"][0])
    beside, without = (figures["seconds"][name][0] for name in ("training beside", "training"))
    assert figures["cost_per_cent"] == pytest.approx(100 * (beside / without - 1))


def test_the_profile_names_every_operator():
    lines = printed("--profile").splitlines()[2:]
    times = {line.split()[0]: float(line.split()[2]) for line in lines}
    assert list(times.values()) == sorted(times.values(), reverse=True)
    assert times["Convolution"] > 0 and times["_backward_Convolution"] > 0
    assert "_contrib_BatchNormWithReLU" in times  # the fast form is profiled
    assert Path(os.devnull).is_char_device()  # MXNet's profiler replaces the file that it writes to


@pytest.mark.parametrize(
    "flags, named",
    [
        (["--num-layers", "57", "--plain"], "--num-layers 57"),
        (["--input-size", "20"], "--input-size 20"),
        (["--net", "imagenet", "--input-size", "32"], "--input-size 32"),
        (["--net", "imagenet", "--input-size", "64", "--loader"], "--loader"),
        (["--loader", "--profile"], "--profile"),
        (["--plain", "--form", "plain"], "--form"),
        (["--rounds", "0"], "--rounds"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(flags, named):
    process = benchmark(*flags)
    assert process.returncode == 2
    assert process.stderr.count("\n") == 1 and named in process.stderr and not process.stdout
