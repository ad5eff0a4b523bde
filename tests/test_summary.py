"""The layer table: complete, in the published networks' figures, and quick to say what it cannot show."""

import os
import subprocess
import sys

import pytest

from model import get_attention_cifar, get_attention_net, units
from model.summary import layers, stage_names, trainable_parameters
from tests.conftest import ROOT, assert_refused


def summary(*flags):
    command = [sys.executable, "-m", "model.summary", *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


PUBLISHED = [
    (["--num-layers", "56"], 31.9e6, 6.3e9),
    (["--num-layers", "92"], 52.47e6, 10.53e9),  # the paper prints 51.3 M and 10.4 G; the README says why not
    (["--num-layers", "56", "--unit", "resnext"], 31_318_824, 6.419e9),
    (["--num-layers", "56", "--unit", "inception"], 31.9e6, 6.3e9),
    (["--cifar"], 7_467_370, 0.503e9),
]


@pytest.mark.parametrize("flags, parameters, multiply_adds", PUBLISHED)
def test_the_table_ends_in_the_published_figures(flags, parameters, multiply_adds):
    process = summary(*flags)
    assert process.returncode == 0, process.stderr
    *_, last = process.stdout.splitlines()
    counted = [int(number.replace(",", "")) for number in last.split()[2:]]
    assert last.startswith("in all")
    assert counted == [pytest.approx(parameters, rel=0.005), pytest.approx(multiply_adds, rel=0.005)]


def test_stages_add_up():
    lines = [line.split() for line in summary("--num-layers", "56").stdout.splitlines()]
    sums = [int(line[-2].replace(",", "")) for line in lines if line and line[0] in ("stem", "stage", "classifier")]
    assert len(sums) == 6 and sum(sums) == 31_810_728
    rows = [line for line in lines if line and line[0].startswith(("features", "output"))]
    assert sum(int(line[-2].replace(",", "")) for line in rows) == 31_810_728


@pytest.mark.parametrize("unit", units)
@pytest.mark.parametrize("get_net, size", [(get_attention_net, 224), (get_attention_cifar, 32)])
def test_every_parameter_is_in_one_layer_under_its_saved_name(unit, get_net, size):
    net = get_net(10, 56, unit=units[unit])
    found = layers(net, (1, 3, size, size))
    assert sum(layer.parameters for layer in found) == trainable_parameters(net)
    saved = {name.rsplit(".", 1)[0] for name in net._collect_params_with_prefix()}
    assert {layer.path for layer in found if layer.parameters} == saved
    assert all(any(f"{layer.path}.".startswith(f"{path}.") for path in stage_names(net)) for layer in found)


def test_maps_shrink_from_stage_to_stage():
    net = get_attention_net(1000, 56)
    ends = {}
    for layer in layers(net, (1, 3, 224, 224)):
        ends[stage_names(net)[".".join(layer.path.split(".")[: 2 - (layer.path == "output")])]] = layer.shape[1:]
    assert ends == {
        "stem": (64, 56, 56),
        "stage 1": (256, 56, 56),
        "stage 2": (512, 28, 28),
        "stage 3": (1024, 14, 14),
        "stage 4": (2048, 1, 1),
        "classifier": (1000,),
    }


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--num-layers", "57"], "452"),
        (["--input-size", "100"], "32"),
        (["--input-size", "1000000"], "a multiple of 32 from 64 to 8192"),
        (["--cifar", "--input-size", "10000000"], "a multiple of 8 from 16 to 8192"),
        (["--classes", "2147483648"], "from 1 to 16777216"),
        (["--unit", "vgg"], "resnext"),
    ],
)
def test_what_there_is_no_table_of_is_refused_in_one_line(flags, words):
    process = summary(*flags)
    assert process.returncode == 2 and process.stderr.count("\n") == 1
    assert flags[-2] in process.stderr and words in process.stderr


def test_a_thread_count_that_is_none_is_refused_in_one_line():
    command = [sys.executable, "-m", "model.summary"]
    environ = {**os.environ, "OMP_NUM_THREADS": "x"}
    process = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=300)
    assert_refused(process, "OMP_NUM_THREADS=x")
