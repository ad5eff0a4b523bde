"""What a launcher says about the process it started. Imports nothing heavy."""

import os
from collections import namedtuple

from base.errors import UserError

__all__ = ["LaunchInfo", "launch_info"]

LaunchInfo = namedtuple("LaunchInfo", ["engine", "rank", "local_size"], defaults=[1])
LaunchInfo.__doc__ = """Which of the processes that train together this one is.

engine : str
    "byteps", "horovod", or "none" for a process that no launcher started.
rank : int
    The first is 0.
local_size : int
    How many of them this machine has.
"""


def launch_info(environ=os.environ):
    """The `LaunchInfo` of this process, as scripts/launch.py or horovodrun started it.

    Raises UserError for variables that are incomplete.
    """
    try:
        if environ.get("DMLC_ROLE") == "worker":
            machine, local_size = int(environ["DMLC_WORKER_ID"]), int(environ["BYTEPS_LOCAL_SIZE"])
            rank = _rank(machine * local_size + int(environ["BYTEPS_LOCAL_RANK"]))
            return LaunchInfo("byteps", rank, max(1, local_size))
        if "HOROVOD_RANK" in environ:
            local_size = int(environ.get("HOROVOD_LOCAL_SIZE", 1))
            return LaunchInfo("horovod", _rank(int(environ["HOROVOD_RANK"])), max(1, local_size))
    except (KeyError, ValueError) as error:
        raise UserError(f"the environment of a worker is incomplete: {error}; scripts/launch.py makes it") from None
    return LaunchInfo("none", 0)


def _rank(number):
    if number < 0:
        raise ValueError(f"rank {number}")
    return number
