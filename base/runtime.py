"""What must happen before MXNet is imported.

MXNet reads its thread count and resolves its CUDA libraries once, while it is imported. Every script
therefore begins with

    from base.runtime import prepare_mxnet

    prepare_mxnet()

above the first import that reaches MXNet. This module itself imports nothing heavy.
"""

import ctypes
import importlib.util
import os
import re
import sys
from pathlib import Path

from base.errors import UserError
from base.gpus import NVRTC_DRIVER, check_driver, check_gpu, gpus

__all__ = [
    "THREAD_VARIABLES",
    "bfloat16_pays",
    "cores_of",
    "prepare_bfloat16",
    "prepare_mxnet",
    "real_core_count",
    "thread_count",
    "uses_amx",
]

# Either of these is the user's own choice of a thread count.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MXNET_OMP_MAX_THREADS")
MOST_THREADS = 1024

# The newest instructions that oneDNN may use, and two values of it.
ISA_VARIABLE = "DNNL_MAX_CPU_ISA"
BF16_ISA, AMX_ISA = "AVX512_CORE_BF16", "AVX512_CORE_AMX"
AMX_FEATURES = {"amx_tile", "amx_bf16"}  # Linux's names

# Linux on x86-64: a system call, its request for the use of a part of the processor's state, and AMX's part.
ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA = 158, 0x1023, 18

# What libmxnet.so of mxnet-cu112 is linked against, as NVIDIA's wheels place it in site-packages/nvidia,
# each after what it needs itself. The parts that cuDNN and NVRTC open later (libcudnn_ops_infer.so.8,
# libnvrtc-builtins.so.11.8 ...) lie beside them and are found by their RUNPATH, $ORIGIN.
_CUDA_LIBRARIES = (
    "cuda_runtime/lib/libcudart.so.11.0",
    "nvtx/lib/libnvToolsExt.so.1",
    "cuda_nvrtc/lib/libnvrtc.so.11.2",
    "cublas/lib/libcublasLt.so.11",
    "cublas/lib/libcublas.so.11",
    "cusolver/lib/libcusolver.so.11",
    "cufft/lib/libcufft.so.10",
    "curand/lib/libcurand.so.10",
    "nccl/lib/libnccl.so.2",
    "cudnn/lib/libcudnn.so.8",
)


def _may_use_amx():
    """Ask the kernel to let this process use AMX's tiles. Returns whether it may."""
    return ctypes.CDLL(None).syscall(ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0


def prepare_mxnet(environ=os.environ, use_gpus=True, threads=None, bfloat16=False):
    """Set MXNet's thread count and load its CUDA libraries, before MXNet is imported.

    OMP_NUM_THREADS becomes ``threads``, by default real_core_count(), unless the user has set it or
    MXNET_OMP_MAX_THREADS. MXNet takes half the visible cores, as if all were hyper-threads.

    MXNET_CPU_TEMP_COPY becomes 1 unless the user has set it: MXNet would keep four work spaces for its operators,
    each as large as the largest, of which one at a time is used.

    With a CUDA build of MXNet, the CUDA 11 libraries that pip installed are loaded, so LD_LIBRARY_PATH is not
    needed. Libraries that pip did not install are left for MXNet to find on the system.

    With a driver older than CUDA 11.8, MXNET_USE_FUSION becomes 0 unless the user has set it: MXNet would have NVRTC
    make operators of several, and the driver cannot read what that NVRTC writes.

    For bfloat16, see `prepare_bfloat16`. A second call changes nothing.

    Parameters
    ----------
    environ : mutable mapping
        The environment in which the variables are read and written. MXNet sees that of this process, os.environ;
        another mapping may serve a process yet to be started.
    use_gpus : bool
        Whether the GPUs and their driver must be such as MXNet runs on.
    threads : int, optional
    bfloat16 : bool
        Whether a network will compute in bfloat16 on the CPU.

    Raises UserError where the user's thread count is none, where MXNet has already been imported with another one, and
    where it is a CUDA build and the NVIDIA driver is missing, a CUDA library cannot be loaded, or the driver or a GPU
    is too old or too new.
    """
    user_decided = _check_thread_variables(environ)
    if bfloat16:
        prepare_bfloat16(environ)
    if "mxnet" in sys.modules:
        if not user_decided and (threads or real_core_count()) != _default_thread_count():
            raise UserError("prepare_mxnet() must run before mxnet is imported: it sets OMP_NUM_THREADS")
        return
    if not user_decided:
        environ["OMP_NUM_THREADS"] = str(threads or real_core_count())
    environ.setdefault("MXNET_CPU_TEMP_COPY", "1")
    site_packages = _cuda_build_location()
    if site_packages is not None:
        environ.setdefault("MXNET_CUDNN_LIB_CHECKING", "0")  # or each process says that cuDNN is newer than MXNet's own
        driver = _load_cuda_libraries(site_packages / "nvidia")
        if use_gpus:
            if check_driver(driver) < NVRTC_DRIVER:
                environ.setdefault("MXNET_USE_FUSION", "0")
            for gpu in gpus(driver):
                check_gpu(gpu)


def prepare_bfloat16(environ, root="/", may_use_amx=_may_use_amx):
    """Have oneDNN compute in bfloat16 by AMX where that is allowed, or else by AVX512-BF16, before its first operator.

    oneDNN leaves AMX alone unless a variable names it. Then it uses it without having asked the kernel, and where that
    has not given its permission, the process ends in an illegal instruction.

    Parameters
    ----------
    environ : mutable mapping
        The user's own choice there of what oneDNN may use is kept, but for an AMX that is not allowed.
    root : path
        Where the tree /proc is found.
    may_use_amx : callable
        Asks the kernel for its permission, and says whether it gave it.

    Says so in a line on stderr where bfloat16 is not expected to pay. Raises UserError where the processor has neither,
    and where the user's choice excludes both.
    """
    instructions, doubt = _choose_instructions(environ, root, may_use_amx)
    if instructions:
        environ[ISA_VARIABLE] = instructions
    if doubt:
        print(f"{doubt}: bfloat16 may be slower than float32 here", file=sys.stderr, flush=True)


def bfloat16_pays(environ=os.environ, root="/", may_use_amx=_may_use_amx):
    """Whether a training in bfloat16 is possible and expected to be faster than in float32.

    The arguments are those of `prepare_bfloat16`. AMX was measured to be faster in inference only (docs/speed.md).
    """
    try:
        instructions, doubt = _choose_instructions(environ, root, may_use_amx)
    except UserError:
        return False
    return instructions != AMX_ISA and not doubt


def _choose_instructions(environ, root, may_use_amx):
    """(what oneDNN's variable should be, "" for nothing; why bfloat16 may be slower, "" where it is not).

    AMD's AVX512-BF16 and Intel's AMX were measured not to be, and Intel's AVX512-BF16 alone to be (docs/speed.md).
    Raises UserError as `prepare_bfloat16` does.
    """
    features, chosen = cpu_features(root), environ.get(ISA_VARIABLE, "").upper()
    if "avx512_bf16" not in features:
        raise UserError(
            "--bfloat16 needs a processor with AVX512-BF16 or AMX, and this one has neither; "
            "a run that began with it goes on with --resume RUN --no-bfloat16"
        )
    if chosen not in ("", "ALL", BF16_ISA, AMX_ISA):
        raise UserError(f"--bfloat16: {ISA_VARIABLE}={chosen} keeps oneDNN from it; unset that variable")
    has_amx, wanted = features >= AMX_FEATURES, chosen in ("", AMX_ISA)
    if has_amx and wanted and may_use_amx():
        return AMX_ISA, ""
    instructions = BF16_ISA if chosen == AMX_ISA else chosen
    if has_amx:
        return instructions, "the kernel does not allow AMX" if wanted else f"{ISA_VARIABLE}={chosen} leaves AMX out"
    intel = _cpuinfo("vendor_id", root) == "GenuineIntel"
    return instructions, "this processor offers no AMX" if intel else ""


def uses_amx(environ=os.environ):
    """Whether oneDNN computes in bfloat16 by AMX, after `prepare_bfloat16`."""
    return environ.get(ISA_VARIABLE, "").upper() == AMX_ISA


def cpu_features(root="/"):
    """What the processor can do, by the names that Linux has for it: set of str."""
    return set(_cpuinfo("flags", root).split())


def _cpuinfo(field, root):
    """What Linux says of the first processor under a name; "" for nothing."""
    lines = (_read(Path(root, "proc/cpuinfo")) or "").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), "")


def real_core_count(root="/", cpus=None):
    """The number of cores this process may use, at least 1.

    Hyper-threads of one core count once. A quota on its control group, rounded up, bounds the result.

    Parameters
    ----------
    root : path
        Where the trees /sys and /proc are found.
    cpus : iterable of int, optional
        The numbers of the logical CPUs to count; those of this process's affinity mask by default.
    """
    if cpus is None:
        cpus = os.sched_getaffinity(0)
    return max(1, min([len(cores_of(cpus, root)), *_cpu_quotas(Path(root))]))


def cores_of(cpus, root="/"):
    """The numbers of logical CPUs, those of a core in a list of their own."""
    # All hyper-threads of a core name the same siblings; a CPU without a readable topology counts as a core.
    topology = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    cores = {}
    for cpu in cpus:
        cores.setdefault(_read(Path(root, topology.format(cpu))) or f"cpu{cpu}", []).append(cpu)
    return list(cores.values())


def thread_count(environ=os.environ):
    """With how many threads MXNet computes on the CPU, after `prepare_mxnet`."""
    return int(next(filter(None, map(environ.get, THREAD_VARIABLES)), _default_thread_count()))


def _check_thread_variables(environ):
    """Whether the user has chosen a thread count. Raises UserError where it is one that ends MXNet's import."""
    chosen = {name: environ[name] for name in THREAD_VARIABLES if environ.get(name)}
    for name, value in chosen.items():
        if not re.fullmatch("[0-9]{1,9}", value) or not 0 < int(value) <= MOST_THREADS:
            raise UserError(f"{name}={value}: give a whole number from 1 to {MOST_THREADS}")
    return bool(chosen)


def _default_thread_count():
    """The thread count MXNet takes on x86 where the environment does not say."""
    return max(1, len(os.sched_getaffinity(0)) // 2)


def _cpu_quotas(root):
    """The quotas, each as of `_cpu_quota`, of this process's cgroup and of those above it, version 1 or 2."""
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mounts = ["sys/fs/cgroup"]
        elif "cpu" in controllers.split(","):
            mounts = [f"sys/fs/cgroup/{controllers}", "sys/fs/cgroup/cpu"]
        else:
            continue
        # In a container the path may be the host's, not to be seen here; the group is then the mount itself.
        for mount in dict.fromkeys(mounts):
            group = root / mount / path.lstrip("/")
            while True:
                quota = _cpu_quota(group)
                if quota is not None:
                    yield quota
                if group == root / mount:
                    break
                group = group.parent


def _cpu_quota(group):
    """The quota of one cgroup folder in whole CPUs, rounded up; None where it sets none."""
    version_1 = [_read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us")]
    version_2 = (_read(group / "cpu.max") or "").split()
    parts = version_2 or version_1
    try:
        quota, period = (int(part) for part in parts)
    except (TypeError, ValueError):  # a missing file, or the word "max"
        return None
    if quota <= 0 or period <= 0:  # version 1 writes -1 for no limit
        return None
    return -(-quota // period)


def _read(path):
    """A file's text without surrounding white space; None where it is empty or cannot be read."""
    try:
        return path.read_text().strip() or None
    except OSError:
        return None


def _cuda_build_location():
    """The site-packages folder that holds a CUDA build of MXNet, or None."""
    spec = importlib.util.find_spec("mxnet")
    if spec is None or spec.origin is None:
        return None
    site_packages = Path(spec.origin).parent.parent
    return site_packages if any(site_packages.glob("mxnet_cu*.dist-info")) else None


def _load_cuda_libraries(folder):
    """Load the driver and those of _CUDA_LIBRARIES that lie under ``folder``.

    The dynamic linker knows a loaded library by its name: MXNet, linked against these names, takes these. Returns the
    driver's library.

    Raises UserError where the driver or a library that lies there cannot be loaded.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1", mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise UserError(
            "mxnet-cu112 is installed, but this machine has no NVIDIA driver (libcuda.so.1): "
            "install requirements-cpu.txt to train on the CPU"
        ) from error
    for name in _CUDA_LIBRARIES:
        if (folder / name).exists():
            try:
                ctypes.CDLL(str(folder / name), mode=ctypes.RTLD_GLOBAL)
            except OSError as error:
                raise UserError(f"the CUDA library {folder / name} cannot be loaded: {error}") from error
    return driver
