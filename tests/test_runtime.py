"""base.runtime: the thread count and the CUDA libraries are right before MXNet is imported."""

import importlib.util
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

from base import runtime
from base.errors import UserError
from base.runtime import prepare_mxnet, real_core_count

REPOSITORY = Path(__file__).resolve().parent.parent
STUB_DRIVER = REPOSITORY / "tests" / "stubs" / "cuda_driver.c"


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


def write_siblings(root, siblings):
    """Make a /sys tree under root in which siblings maps each logical CPU to the list of its core's CPUs."""
    for cpu, text in siblings.items():
        write(root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list", text)


def run_python(code, python=sys.executable, **environ):
    """Run code in another Python in the repository root, without this one's thread and library settings."""
    unset = ("OMP_NUM_THREADS", "MXNET_OMP_MAX_THREADS", "LD_LIBRARY_PATH", "LD_PRELOAD")
    env = {name: value for name, value in os.environ.items() if name not in unset}
    return subprocess.run(
        [python, "-c", code],
        check=False,
        cwd=REPOSITORY,
        env={**env, **environ},
        capture_output=True,
        text=True,
        timeout=120,
    )


# Counting cores


def test_hyper_threads_of_one_core_count_once(tmp_path):
    write_siblings(tmp_path, {0: "0,4", 1: "1,5", 2: "2,6", 3: "3,7", 4: "0,4", 5: "1,5", 6: "2,6", 7: "3,7"})
    assert real_core_count(tmp_path, cpus=range(8)) == 4


def test_only_cpus_of_the_affinity_mask_count(tmp_path):
    write_siblings(tmp_path, {0: "0-1", 1: "0-1", 2: "2-3", 3: "2-3"})
    assert real_core_count(tmp_path, cpus={0, 1}) == 1
    assert real_core_count(tmp_path, cpus={1, 2}) == 2


def test_without_topology_each_cpu_is_a_core(tmp_path):
    assert real_core_count(tmp_path, cpus={0, 1, 5}) == 3


def test_the_affinity_mask_of_this_process_is_the_default(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 4})
    assert real_core_count(tmp_path) == 2


@pytest.mark.parametrize(
    "limit, cores", [("max 100000", 8), ("200000 100000", 2), ("250000 100000", 3), ("1000 100000", 1)]
)
def test_a_version_2_quota_bounds_the_count_rounded_up(tmp_path, limit, cores):
    write(tmp_path / "proc/self/cgroup", "0::/job")
    write(tmp_path / "sys/fs/cgroup/job/cpu.max", limit)
    assert real_core_count(tmp_path, cpus=range(8)) == cores


def test_a_quota_on_a_group_above_bounds_the_count(tmp_path):
    write(tmp_path / "proc/self/cgroup", "0::/user/job")
    write(tmp_path / "sys/fs/cgroup/user/job/cpu.max", "max 100000")
    write(tmp_path / "sys/fs/cgroup/user/cpu.max", "300000 100000")
    assert real_core_count(tmp_path, cpus=range(8)) == 3


def test_a_quota_counts_in_a_container_that_cannot_see_its_groups_path(tmp_path):
    write(tmp_path / "proc/self/cgroup", "0::/system.slice/container")
    write(tmp_path / "sys/fs/cgroup/cpu.max", "200000 100000")
    assert real_core_count(tmp_path, cpus=range(8)) == 2


@pytest.mark.parametrize("controllers, mount", [("cpu,cpuacct", "cpu,cpuacct"), ("cpu,cpuacct", "cpu"), ("cpu", "cpu")])
@pytest.mark.parametrize("quota, cores", [("-1", 8), ("150000", 2)])
def test_a_version_1_quota_bounds_the_count_rounded_up(tmp_path, controllers, mount, quota, cores):
    write(tmp_path / "proc/self/cgroup", f"3:cpuset:/\n2:{controllers}:/job\n0::/")
    write(tmp_path / "sys/fs/cgroup" / mount / "job/cpu.cfs_quota_us", quota)
    write(tmp_path / "sys/fs/cgroup" / mount / "job/cpu.cfs_period_us", "100000")
    assert real_core_count(tmp_path, cpus=range(8)) == cores


def test_this_machine_has_at_least_one_core_and_no_more_than_it_shows():
    assert 1 <= real_core_count() <= os.cpu_count()


# The thread count


@pytest.fixture
def mxnet_not_imported(monkeypatch):
    """A process that has not imported MXNet, whichever test ran before, with no CUDA build installed."""
    monkeypatch.delitem(sys.modules, "mxnet", raising=False)
    monkeypatch.setattr(runtime, "_cuda_build_location", lambda: None)


def test_the_thread_count_is_the_number_of_real_cores(mxnet_not_imported):
    environ = {}
    prepare_mxnet(environ)
    prepare_mxnet(environ)
    assert environ == {"OMP_NUM_THREADS": str(real_core_count()), "MXNET_CPU_TEMP_COPY": "1"}


@pytest.mark.parametrize("chosen", [{"OMP_NUM_THREADS": "7"}, {"MXNET_OMP_MAX_THREADS": "7"}])
def test_the_users_thread_count_and_work_spaces_are_kept(mxnet_not_imported, chosen):
    environ = {**chosen, "MXNET_CPU_TEMP_COPY": "2"}
    prepare_mxnet(environ)
    assert environ == {**chosen, "MXNET_CPU_TEMP_COPY": "2"}


def test_a_chosen_thread_count_is_what_mxnet_gets(mxnet_not_imported):
    environ = {}
    prepare_mxnet(environ, threads=3)
    assert environ["OMP_NUM_THREADS"] == "3"


@pytest.mark.parametrize("variable", ["OMP_NUM_THREADS", "MXNET_OMP_MAX_THREADS"])
@pytest.mark.parametrize("value", ["abc", "4,2", "0", "-1", " 2", "2.0", "100000", "9" * 30, "\u0662"])
def test_a_thread_count_that_would_end_mxnets_import_is_named(mxnet_not_imported, variable, value):
    with pytest.raises(UserError, match=f"{variable}=.*whole number from 1 to 1024"):
        prepare_mxnet({variable: value})


def test_too_late_is_an_error_only_where_it_makes_a_difference(monkeypatch):
    monkeypatch.setitem(sys.modules, "mxnet", types.ModuleType("mxnet"))
    monkeypatch.setattr(runtime, "real_core_count", lambda: 4)
    monkeypatch.setattr(runtime, "_default_thread_count", lambda: 2)
    environ = {}
    with pytest.raises(UserError, match="before mxnet is imported"):
        prepare_mxnet(environ)
    assert environ == {}

    prepare_mxnet({"OMP_NUM_THREADS": "4"})
    monkeypatch.setattr(runtime, "_default_thread_count", lambda: 4)
    prepare_mxnet(environ)


@pytest.mark.skipif(importlib.util.find_spec("mxnet") is None, reason="mxnet is not installed")
def test_mxnet_runs_with_the_thread_count_that_was_prepared():
    code = """
import ctypes
from base.runtime import prepare_mxnet
prepare_mxnet()
import mxnet
print(ctypes.CDLL("libgomp.so.1").omp_get_max_threads())
"""
    prepared = run_python(code)
    assert prepared.stdout.split() == [str(real_core_count())], prepared.stderr
    chosen = run_python(code, OMP_NUM_THREADS="3")
    assert chosen.stdout.split() == ["3"], chosen.stderr


def test_the_module_imports_only_the_standard_library():
    code = "import sys, base.runtime; print(sorted({'mxnet', 'numpy', 'nvidia'} & set(sys.modules)))"
    assert run_python(code).stdout.strip() == "[]"


# The CUDA libraries


@pytest.fixture(scope="module")
def gpu_python():
    """A Python whose environment has mxnet-cu112: the one RAN_GPU_PYTHON names, or this one."""
    python = os.environ.get("RAN_GPU_PYTHON", sys.executable)
    found = run_python("import importlib.metadata; print(importlib.metadata.version('mxnet-cu112'))", python)
    if found.returncode != 0:
        pytest.skip(f"mxnet-cu112 is not installed for {python} (RAN_GPU_PYTHON may name another Python)")
    return python


@pytest.fixture(scope="module")
def stub_driver(new_folder):
    """A folder that holds nothing but a libcuda.so.1 without a device."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("no gcc to compile the stub driver with")
    folder = new_folder("driver")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", folder / "libcuda.so.1", STUB_DRIVER], check=True)
    return folder


def test_the_gpu_set_needs_the_driver_and_nothing_else_on_the_library_path(gpu_python, stub_driver):
    code = """
from base.runtime import prepare_mxnet
prepare_mxnet()
prepare_mxnet()
import mxnet as mx
print(mx.context.num_gpus(), mx.runtime.Features().is_enabled("CUDA"), mx.nd.ones((2, 3)).sum().asscalar())
"""
    result = run_python(code, gpu_python, LD_LIBRARY_PATH=str(stub_driver))
    assert result.stdout.split() == ["0", "True", "6.0"], result.stderr


def test_the_parts_that_cudnn_opens_later_are_found(gpu_python, stub_driver):
    code = """
import ctypes
from base.runtime import prepare_mxnet
prepare_mxnet()
ctypes.CDLL("libcudnn.so.8").cudnnAdvTrainVersionCheck()
print("libcudnn_adv_train.so.8" in open("/proc/self/maps").read())
"""
    result = run_python(code, gpu_python, LD_LIBRARY_PATH=str(stub_driver))
    assert result.stdout.split() == ["True"], result.stderr


def test_a_cuda_build_without_a_driver_ends_in_one_clear_line(monkeypatch, tmp_path):
    def no_library(name, mode):
        raise OSError(f"{name}: cannot open shared object file: No such file or directory")

    monkeypatch.delitem(sys.modules, "mxnet", raising=False)
    monkeypatch.setattr(runtime, "_cuda_build_location", lambda: tmp_path)
    monkeypatch.setattr(runtime.ctypes, "CDLL", no_library)
    with pytest.raises(UserError, match=r"no NVIDIA driver.*requirements-cpu\.txt") as raised:
        prepare_mxnet({})
    assert "\n" not in str(raised.value)


# The GPUs and their driver

ASK = """
import ctypes, sys
from pathlib import Path
from base import runtime
from base.errors import run_command
runtime._cuda_build_location = lambda: Path("/nonexistent")
environ = {"OMP_NUM_THREADS": "1"}
run_command(lambda: runtime.prepare_mxnet(environ, use_gpus="cpu" not in sys.argv))
print(environ.get("MXNET_USE_FUSION"))
"""


@pytest.mark.parametrize(
    "capabilities, refused",
    [
        ("37", "GPU 0, Stub 0, is too old: its compute capability is 3.7"),
        ("50 52 61 70 75 80 86 89", None),
        ("86 90", "GPU 1, Stub 1, is too new: its compute capability is 9.0"),
        ("120", "GPU 0, Stub 0, is too new: its compute capability is 12.0"),
        ("", None),
    ],
)
def test_a_gpu_without_code_in_mxnet_is_named_before_mxnet_is_imported(stub_driver, capabilities, refused):
    result = run_python(ASK, LD_LIBRARY_PATH=str(stub_driver), STUB_CAPABILITIES=capabilities)
    if refused is None:
        assert result.returncode == 0, result.stderr
    else:
        assert result.returncode == 2 and result.stderr.count("\n") == 1 and refused in result.stderr


def test_gpus_are_found_where_they_are_plugged_in(stub_driver):
    code = "from scripts.check_gpu import visible_gpus; print(visible_gpus())"
    for capabilities, found in (("75 86", ["0000:01:00.0", "0000:02:00.0"]), ("", [])):
        result = run_python(code, LD_LIBRARY_PATH=str(stub_driver), STUB_CAPABILITIES=capabilities)
        assert result.stdout.strip() == str(found), result.stderr


@pytest.mark.parametrize("version, refused", [("10020", True), ("11000", False), ("11020", False), ("13000", False)])
def test_a_driver_older_than_cuda_11_is_named(stub_driver, version, refused):
    result = run_python(ASK, LD_LIBRARY_PATH=str(stub_driver), STUB_DRIVER_VERSION=version)
    if refused:
        assert result.returncode == 2 and "it runs CUDA 10.2 and earlier" in result.stderr
        assert result.stderr.count("\n") == 1
    else:
        assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("version, fusion", [("11070", "0"), ("11080", "None")])
def test_a_driver_that_cannot_read_what_nvrtc_writes_gets_no_fused_operators(stub_driver, version, fusion):
    result = run_python(ASK, LD_LIBRARY_PATH=str(stub_driver), STUB_DRIVER_VERSION=version)
    assert result.stdout.split() == [fusion], result.stderr


def test_a_training_on_the_cpu_does_not_mind_the_gpus(stub_driver):
    code = "import sys; sys.argv.append('cpu')" + ASK
    result = run_python(code, LD_LIBRARY_PATH=str(stub_driver), STUB_CAPABILITIES="90", STUB_DRIVER_VERSION="9000")
    assert result.returncode == 0, result.stderr
