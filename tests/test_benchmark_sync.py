"""The benchmark of workers in step tells what is exchanged from what is computed, alone and with a real engine."""

import json
import re
import sys

import pytest

from tests import engines
from tests.conftest import assert_refused, run_script
from tests.test_sync import run_horovod

SCRIPT = "scripts/benchmark_sync.py"
SMALL = ("--family", "small", "--batch-size", 2, "--steps", 1)
SMALL_BYTES = 4_805_888  # 4,805,672 of gradients; parts begin at multiples of 64 numbers


def test_a_worker_alone_is_measured_and_has_nobody_to_exchange_with():
    process = run_script(SCRIPT, *SMALL)
    assert process.returncode == 0, process.stderr
    title, training, parts, gradients = process.stdout.splitlines()
    assert title.startswith("small network, 32x32, 2 images a step, workers 1, OMP_NUM_THREADS ")
    number = r"\d+\.\d+"
    assert re.fullmatch(rf"  training +{number} images/s   step {number} s", training)
    assert re.fullmatch(rf"  in two parts   computation {number} s, communication {number} s: {number}%", parts)
    assert gradients == f"  gradients      {SMALL_BYTES:,} bytes, arrays: 1, exchanged as {SMALL_BYTES:,}"


def test_two_workers_of_horovod_are_measured_together(tmp_path):
    with engines.Processes(tmp_path) as processes:
        run_horovod(processes, 2, sys.executable, SCRIPT, *map(str, SMALL), "--gradient-compression", "fp16", "--json")
        assert processes.wait(engines.LONG) == {"job": 0}, processes.output("job")
        found = re.findall(r"\{.*\}", processes.output("job"))
    assert len(found) == 1  # the first worker's
    figures = json.loads(found[0])
    assert (figures["workers"], figures["images"]) == (2, 4)
    assert (figures["gradient_bytes"], figures["exchanged_bytes"]) == (SMALL_BYTES, SMALL_BYTES // 2)
    assert all(len(values) == 1 and values[0] > 0 for values in figures["seconds"].values())
    assert list(figures["seconds"]) == ["step", "computation", "communication", "one array"]
    assert figures["images_per_second"] == pytest.approx(4 / figures["seconds"]["step"][0])


@pytest.mark.parametrize(
    "flags, named",
    [
        (["--steps", "0"], "--steps"),
        (["--num-layers", "57"], "--num-layers 57"),
        (["--gradient-compression", "fp16"], "--gradient-compression fp16"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(flags, named):
    assert_refused(run_script(SCRIPT, *flags), named)
