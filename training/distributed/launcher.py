"""What a launcher says about the process it started. Imports nothing heavy."""

import os
from collections import namedtuple

from base.errors import UserError

__all__ = ["LaunchInfo", "launch_info"]

LaunchInfo = namedtuple("LaunchInfo", ["engine", "rank"])
LaunchInfo.__doc__ = """Which of the processes that train together this one is.

engine : str
    "byteps", "horovod", or "none" for a process that no launcher started.
rank : int
    The first is 0.
"""


def launch_info(environ=os.environ):
    """The `LaunchInfo` of this process, as scripts/launch.py or horovodrun started it.

    Raises UserError for variables that are incomplete.
    """
    try:
        if environ.get("DMLC_ROLE") == "worker":
            machine, local_size = int(environ["DMLC_WORKER_ID"]), int(environ["BYTEPS_LOCAL_SIZE"])
            return LaunchInfo("byteps", _rank(machine * local_size + int(environ["BYTEPS_LOCAL_RANK"])))
        if "HOROVOD_RANK" in environ:
            return LaunchInfo("horovod", _rank(int(environ["HOROVOD_RANK"])))
    except (KeyError, ValueError) as error:
        raise UserError(f"the environment of a worker is incomplete: {error}; scripts/launch.py makes it") from None
    return LaunchInfo("none", 0)


def _rank(number):
    if number < 0:
        raise ValueError(f"rank {number}")
    return number
