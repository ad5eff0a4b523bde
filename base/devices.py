"""The devices that MXNet computes on."""

import contextlib
import functools
import math
from concurrent.futures import ThreadPoolExecutor

import mxnet as mx

from base.errors import UserError

__all__ = ["contexts", "explaining_memory", "in_own_thread", "is_out_of_memory"]

LEAST_MEMORY = 600e6  # bytes


def contexts(num_gpus, first=0):
    """``num_gpus`` GPUs from number ``first`` on, or the CPU for 0, as a list of MXNet contexts.

    Raises UserError where the machine has fewer, and where one has hardly any memory left.
    """
    if num_gpus == 0:
        return [mx.cpu()]
    try:
        present = mx.context.num_gpus()
    except mx.base.MXNetError:  # a driver that answers with an error
        present = 0
    if present < first + num_gpus:
        which = f" from number {first} on" if first else ""
        raise UserError(f"--num-gpus {num_gpus}{which}: MXNet sees {present} here; --num-gpus 0 trains on the CPU")
    for index in range(first, first + num_gpus):
        # MXNet's own thread would fail to make its handles there, and end the process
        free = _free_memory(index)
        if free < LEAST_MEMORY:
            raise UserError(f"GPU {index} has {free / 1e6:.0f} MB free: another program uses it")
    return [mx.gpu(index) for index in range(first, first + num_gpus)]


def _free_memory(index):
    """The bytes that a GPU has free; infinitely many where it does not tell."""
    try:
        return mx.context.gpu_memory_info(index)[0]
    except mx.base.MXNetError as error:
        return 0 if is_out_of_memory(error) else math.inf


def is_out_of_memory(error):
    """Whether an exception of Python's, MXNet's or DALI's says that a device's memory, or the machine's, is used up."""
    words = (
        "out of memory",
        "memoryallocation",
        "failed to allocate",
        "status_alloc_failed",
        "allocation failed",  # DALI's words for a GPU, and the next ones; nvJPEG's are those after them
        "can't allocate",
        "allocator functions",
        "convolution algorithm",  # MXNet's where cuDNN has no room left to try any
        "2^31 elements",
    )
    return isinstance(error, MemoryError) or any(word in str(error).lower() for word in words)


@contextlib.contextmanager
def explaining_memory(flags="--batch-size or --memory-saving"):
    """Raises UserError, which names the flags that need less, where memory is used up inside."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # MXNetError is a kind of the former
        if not is_out_of_memory(error):
            raise
        raise UserError(f"out of memory: a smaller {flags} needs less") from None


def in_own_thread(function):
    """Decorator for a function that copies large arrays out of MXNet: runs it in a thread that ends with it.

    Such a copy runs in parallel, and OpenMP keeps helpers for every thread that ever did so. Where there are more of
    them than cores, they wait for work asleep instead of awake, and a training step takes a quarter longer.
    """

    @functools.wraps(function)
    def wrapper(*arguments):
        with ThreadPoolExecutor(max_workers=1) as executor:
            return executor.submit(function, *arguments).result()

    return wrapper
