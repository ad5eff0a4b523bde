"""The installed engines themselves: BytePS and Horovod sum MXNet arrays over real processes, and end in order."""

import hashlib
import os
import sys

import numpy as np

from tests import engines

# Worker number rank pushes (arange(size) + 1) * (rank + 1); the last array is more than one of BytePS's partitions.
ARRAYS = [
    (1, "float32"),
    (1000, "float32"),
    (1000, "float64"),
    (1000, "int32"),
    (60, "float16"),
    (2_500_000, "float32"),
]

SUM = f"""
import sys
from base.runtime import prepare_mxnet
prepare_mxnet()
import hashlib
import numpy as np
import mxnet as mx

def check(rank, size, reduce):
    for number, (count, dtype) in enumerate({ARRAYS}):
        pushed = (np.arange(count) % 1000 + 1) * (rank + 1)
        array = mx.nd.array(pushed, dtype=dtype)
        reduce(array, f"array_{{number}}")
        print("sum", rank, size, hashlib.sha256(array.asnumpy().tobytes()).hexdigest())
"""

BYTEPS_WORKER = (
    SUM
    + """
import byteps.mxnet as bps
from byteps.mxnet.ops import MXNET_LIB_CTYPES

MXNET_LIB_CTYPES.byteps_mxnet_declare_tensor.restype = lambda _: 0  # a void function whose value BytePS checks

def reduce(array, name):
    bps.byteps_declare_tensor(name)
    bps.byteps_push_pull(array, name=name, is_average=False)

bps.init()
check(bps.rank(), bps.size(), reduce)
bps.shutdown()
"""
)

HOROVOD_WORKER = (
    SUM
    + """
import horovod.mxnet as hvd

hvd.init()
check(hvd.rank(), hvd.size(), lambda array, name: hvd.allreduce_(array, average=False, name=name))
hvd.shutdown()
"""
)


def sums(printed):
    """What a worker printed of its sums, as (rank, size, digest) each; of several workers' lines, in order of rank."""
    words = (line.partition("sum ")[2].split() for line in printed.splitlines() if "sum " in line)
    return sorted(((int(rank), int(size), digest) for rank, size, digest in words), key=lambda line: line[0])


def expected(rank, workers=2):
    factor = sum(range(1, workers + 1))
    totals = [((np.arange(count) % 1000 + 1) * factor).astype(dtype) for count, dtype in ARRAYS]
    return [(rank, workers, hashlib.sha256(total.tobytes()).hexdigest()) for total in totals]


def test_byteps_sums_over_two_workers_and_all_its_processes_end(processes, tmp_path):
    engines.require("byteps")
    processes.start_byteps(engines.cuda_standin(tmp_path), [sys.executable, "-c", BYTEPS_WORKER])
    statuses = processes.wait(engines.LONG)
    printed = {name: processes.output(name) for name in statuses}
    assert statuses == dict.fromkeys(("scheduler", "server", "worker 0", "worker 1"), 0), printed
    for rank in (0, 1):
        assert sums(printed[f"worker {rank}"]) == expected(rank)


def test_horovod_sums_over_two_workers(processes):
    engines.require("horovod")
    horovodrun = [sys.executable, "-m", "horovod.runner.launch", "-np", "2", "--gloo"]
    processes.start("job", [*horovodrun, sys.executable, "-c", HOROVOD_WORKER], {**os.environ, "OMP_NUM_THREADS": "1"})
    assert processes.wait(engines.LONG) == {"job": 0}, processes.output("job")
    assert sums(processes.output("job")) == expected(0) + expected(1)
