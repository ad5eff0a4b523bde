"""What a launcher says about the process it started. Imports nothing heavy."""

import os
from collections import namedtuple

from base.errors import UserError

__all__ = ["Launched", "launched"]

Launched = namedtuple("Launched", ["engine", "rank"])
Launched.__doc__ = """A process's place among those that train together.

engine : str
    "byteps", "horovod", or "none" for a process that no launcher started.
rank : int
    Which of them it is; the first is 0.
"""


def launched(environ=os.environ):
    """This process as scripts/launch.py or horovodrun started it.

    Raises UserError for variables that are incomplete.
    """
    try:
        if environ.get("DMLC_ROLE") == "worker":
            machine, local_size = int(environ["DMLC_WORKER_ID"]), int(environ["BYTEPS_LOCAL_SIZE"])
            return Launched("byteps", machine * local_size + int(environ["BYTEPS_LOCAL_RANK"]))
        if "HOROVOD_RANK" in environ:
            return Launched("horovod", int(environ["HOROVOD_RANK"]))
    except (KeyError, ValueError) as error:
        raise UserError(f"the environment of a worker is incomplete: {error}; scripts/launch.py makes it") from None
    return Launched("none", 0)
