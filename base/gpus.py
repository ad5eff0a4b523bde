"""Whether the GPUs of a machine can run MXNet's build for CUDA 11.2. Imports nothing heavy."""

import ctypes
from collections import namedtuple

from base.errors import UserError

__all__ = ["NVRTC_DRIVER", "Gpu", "bus_ids", "check_driver", "check_gpu", "gpus"]

# mxnet-cu112 1.9.1 holds machine code for compute capability 5.0, 6.0, 7.0, 8.0 and 8.6, and none in the form (PTX)
# that a driver could translate for a later GPU. Code for a capability runs on all later ones of the same first number.
OLDEST, NEWEST = 5, 8  # the first numbers

OLDEST_DRIVER = 11000  # CUDA 11.0: what programs of any CUDA 11 need, driver 450.80.02
NVRTC_DRIVER = 11080  # CUDA 11.8: what reads the code that the NVRTC of requirements.txt makes, driver 520.61.05

CAPABILITY_MAJOR, CAPABILITY_MINOR = 75, 76  # the driver's numbers of these attributes

Gpu = namedtuple("Gpu", ["index", "name", "major", "minor"])
Gpu.__doc__ = """A GPU as the driver describes it.

index : int
name : str
major, minor : int
    Its compute capability.
"""


def check_driver(library):
    """The newest CUDA that a driver can run, as in 11020 for 11.2.

    Parameters
    ----------
    library : ctypes.CDLL
        libcuda.so.1.

    Raises UserError where that is older than what MXNet needs.
    """
    version = ctypes.c_int()
    if library.cuDriverGetVersion(ctypes.byref(version)) == 0 and version.value < OLDEST_DRIVER:
        newest = f"{version.value // 1000}.{version.value % 1000 // 10}"
        raise UserError(
            f"the NVIDIA driver is too old: it runs CUDA {newest} and earlier, and mxnet-cu112 needs one for CUDA 11, "
            "450.80.02 or later"
        )
    return version.value


def gpus(library):
    """The `Gpu`s that a driver shows, CUDA_VISIBLE_DEVICES obeyed; none where it answers with an error."""
    count, found = ctypes.c_int(), []
    if library.cuInit(0) or library.cuDeviceGetCount(ctypes.byref(count)):
        return found
    for index in range(count.value):
        device, name, numbers = ctypes.c_int(), ctypes.create_string_buffer(100), [ctypes.c_int(), ctypes.c_int()]
        library.cuDeviceGet(ctypes.byref(device), index)
        library.cuDeviceGetName(name, len(name), device)
        for number, attribute in zip(numbers, (CAPABILITY_MAJOR, CAPABILITY_MINOR)):
            library.cuDeviceGetAttribute(ctypes.byref(number), attribute, device)
        found.append(Gpu(index, name.value.decode(errors="replace"), *(number.value for number in numbers)))
    return found


def bus_ids(library):
    """Where the GPUs of `gpus` are plugged in, by which nvidia-smi knows them too; its numbers are others."""
    found = []
    for gpu in gpus(library):
        device, name = ctypes.c_int(), ctypes.create_string_buffer(32)
        library.cuDeviceGet(ctypes.byref(device), gpu.index)
        library.cuDeviceGetPCIBusId(name, len(name), device)
        found.append(name.value.decode())
    return found


def check_gpu(gpu):
    """Raise UserError where MXNet has no code for a `Gpu`."""
    if OLDEST <= gpu.major <= NEWEST:
        return
    age = "old" if gpu.major < OLDEST else "new"
    raise UserError(
        f"GPU {gpu.index}, {gpu.name}, is too {age}: its compute capability is {gpu.major}.{gpu.minor}, and "
        f"mxnet-cu112 has code for {OLDEST}.0 to {NEWEST}.9; CUDA_VISIBLE_DEVICES can hide it, --num-gpus 0 is the CPU"
    )
