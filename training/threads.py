"""How many threads a training computes with. Imports nothing heavy.

OpenMP's threads wait for each other awake. Where other processes keep cores busy, as many threads as cores cost a
multiple of the time (docs/speed.md has it measured), so a training takes as many as there are idle cores.
"""

import os

from base.crowd import busy_cores
from base.output import lasting_output
from base.runtime import THREAD_VARIABLES, cores_of, real_core_count
from training.distributed.launcher import launch_info

__all__ = ["choose_threads"]


def choose_threads(num_gpus, resumed=None, environ=os.environ, cores=None, visible=None, busy=busy_cores):
    """The number of threads to compute with on a CPU, said in a line where it is not that of all cores.

    A run that is gone on with has as many as before where there are cores for them: as many give the same bits.

    Parameters
    ----------
    num_gpus : int
    resumed : training.run.resume.Resumed, optional
        What to go on with.
    environ : mapping
    cores : int, optional
        That this process may use at a time; `base.runtime.real_core_count` by default.
    visible : int, optional
        Among which it may choose them, more than ``cores`` under a quota; those of its affinity mask by default.
    busy : callable
        Says how many of the visible ones others keep busy.

    The workers of a machine share its cores, whoever keeps them busy.

    Returns None on GPUs, and where the user has chosen, or the launcher for the user.
    """
    if num_gpus or any(environ.get(name) for name in THREAD_VARIABLES):
        return None
    launch, cores = launch_info(environ), cores or real_core_count()
    if launch.engine != "none":
        return max(1, cores // launch.local_size)
    then = resumed.checkpoint.facts.get("threads") if resumed else None
    spare = (visible or len(cores_of(os.sched_getaffinity(0)))) - cores
    taken = min(cores, max(0, busy() - spare)) if cores > 1 else 0
    idle = max(1, cores - taken)
    threads = then if type(then) is int and 0 < then <= cores else idle
    others = f"others leave {cores - taken} of {cores} cores idle: " if taken else ""
    override = "OMP_NUM_THREADS chooses another number (docs/speed.md)"
    if threads > idle:
        _say(f"{others}{_count(threads)} as before, for the same bits, but fewer would be faster; {override}")
    elif threads != cores and threads == then:
        _say(f"{others}{_count(threads)} of {cores} as before, for the same bits; {override}")
    elif threads != cores:
        speed = f"slower than {cores} on an idle machine and faster than {cores} here"
        _say(f"{others}{_count(threads)}, {speed}; {override}")
    return threads


def _count(threads):
    return f"computing with {threads} thread{'s' if threads > 1 else ''}"


def _say(line):
    with lasting_output():
        print(line, flush=True)
