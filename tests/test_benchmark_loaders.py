"""The comparison of loaders runs all three on real photographs, and says what it cannot do."""

import json
import subprocess
import sys

from data.imagenet import JpegOptions, prepare
from tests.conftest import ROOT


def benchmark(*arguments):
    command = [sys.executable, "-m", "scripts.benchmark_loaders", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)


def test_all_loaders_are_measured_in_turn(tmp_path, photographs):
    prepare(photographs, tmp_path / "records", val_share=0.7, jpeg=JpegOptions(short_side=64))
    process = benchmark(tmp_path / "records", "--rounds", "1", "--seconds", "0.1", "--batch-size", "8", "--json")
    assert process.returncode == 0, process.stderr
    result = json.loads(process.stdout)
    assert result["cores"] == 1 and len(result["images_per_second"]) == 3
    assert all(len(turns) == 1 and turns[0] > 0 for turns in result["images_per_second"].values())


def test_what_it_cannot_measure_is_said_in_one_line(tmp_path):
    for arguments in ([tmp_path], [tmp_path, "--cores", "4096"]):
        process = benchmark(*arguments)
        assert process.returncode == 2 and process.stderr.count("\n") == 1
