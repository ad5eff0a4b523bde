"""MXNet's .params files: their layout, to be checked before MXNet reads one, and one in memory, to be written.

MXNet believes the sizes that a file names: of a damaged one it may ask for all memory there is.
"""

import contextlib
import math
import os
import struct

import mxnet as mx

__all__ = ["check_layout", "saved_in_memory"]

LIST_MAGIC = 0x112
ARRAY_MAGICS = (0xF993FAC9, 0xF993FACA)  # of MXNet's classic and of numpy's shapes; others are older than MXNet 1.0
DENSE = 0
SIZES = {0: 4, 1: 8, 2: 2, 3: 1, 4: 4, 5: 1, 6: 8, 7: 1}  # bytes of a number by its type
MOST_AXES = 32


@contextlib.contextmanager
def saved_in_memory(arrays):
    """The .params file of some arrays, {name: NDArray}, in memory: a binary file, open to be read.

    MXNet's own writer leaves a short file on a full disk and says nothing.
    """
    with open(os.memfd_create("params"), "w+b") as memory:
        mx.nd.save(f"/proc/self/fd/{memory.fileno()}", arrays)
        yield memory


def check_layout(content):
    """Raise ValueError unless the bytes of a .params file are as many arrays and names as they say.

    Parameters
    ----------
    content : bytes-like
        The whole file.
    """
    if bytes(content[:8]) != struct.pack("<Q", LIST_MAGIC):
        raise ValueError("it is no file of MXNet's arrays")
    reader = Reader(content)
    _, _, arrays = reader.take("<QQQ")
    for _ in range(arrays):
        magic, storage = reader.take("<Ii")
        if magic not in ARRAY_MAGICS or storage != DENSE:
            raise ValueError("an array in it is damaged, or not of MXNet 1's dense format")
        (axes,) = reader.take("<i")
        if not 0 < axes <= MOST_AXES:
            raise ValueError(f"an array in it has {axes} axes")
        shape = reader.take(f"<{axes}q")
        *_, kind = reader.take("<iii")
        if kind not in SIZES or min(shape) < 1:
            raise ValueError(f"an array in it has the shape {shape} and numbers of type {kind}")
        reader.skip(SIZES[kind] * math.prod(shape))
    (names,) = reader.take("<Q")
    if names not in (0, arrays):
        raise ValueError(f"it has {arrays} arrays and {names} names")
    for _ in range(names):
        reader.skip(*reader.take("<Q"))
    reader.end()


class Reader:
    """Reads bytes from the front on. Its methods raise ValueError where there are not as many as wanted."""

    def __init__(self, content):
        self._content, self._position = memoryview(content), 0

    def take(self, layout):
        """The numbers of a `struct` layout."""
        start = self._position
        self.skip(struct.calcsize(layout))
        return struct.unpack_from(layout, self._content, start)

    def skip(self, count):
        if count > len(self._content) - self._position:
            raise ValueError("it ends too early")
        self._position += count

    def end(self):
        if self._position != len(self._content):
            raise ValueError(f"{len(self._content) - self._position} bytes follow its last name")
