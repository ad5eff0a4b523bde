"""Real processes of BytePS and Horovod on this machine, for tests: started, watched, and ended whatever happens.

BytePS's worker runs on GPUs only, and one worker process a machine and device. Tests run it on a CPU by `cuda_standin`
in place of the CUDA libraries, and several on one machine by `own_machine`.
"""

import contextlib
import importlib.metadata
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

STANDIN = ROOT / "tests" / "cuda_standin"
LONG = 600  # seconds: several processes that import MXNet, on two cores that do other things too
LOOPBACK = "127.0.0.1"


def require(engine):
    """Skip the test where "byteps" or "horovod" is not installed; with RAN_REQUIRE_ENGINES set, fail it."""
    try:
        importlib.metadata.version(engine)
    except importlib.metadata.PackageNotFoundError:
        _lacking(f"{engine} is not installed (scripts/install_{engine}.sh installs it)")


def cuda_standin(folder):
    """Compile what stands in for the CUDA runtime and NCCL; returns `folder`, to be put on LD_LIBRARY_PATH."""
    compiler = os.environ.get("CC", "gcc")
    for source, name in (("cudart.c", "libcudart.so.11.0"), ("nccl.c", "libnccl.so.2")):
        options = ["-shared", "-fPIC", f"-Wl,-soname,{name}", "-Wl,--default-symver", "-o", folder / name]
        try:
            subprocess.run([compiler, *options, STANDIN / source], check=True)
        except FileNotFoundError:
            _lacking(f"no {compiler} to compile the stand-in for CUDA with")
    return folder


def own_machine(command):
    """Return `command` with a /dev/shm of its own, as on another machine: BytePS's names there would clash."""
    unshare = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--mount"]
    own = [*unshare, "sh", "-c", 'mount -t tmpfs tmpfs /dev/shm && exec "$@"', "sh"]
    try:
        subprocess.run([*own, "true"], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        why = getattr(error, "stderr", "") or error
        _lacking(f"two BytePS workers need a /dev/shm each, and mounting is not permitted here ({why})")
    return [*own, *command]


def byteps_environ(role, port, standin, workers=2, worker=0):
    """Return the environment of one process of a BytePS job on the loopback interface.

    Args:
        role: "scheduler", "server" (one is expected) or "worker".
        port: The port of the scheduler.
        standin: The folder of `cuda_standin`.
        workers: How many workers there are.
        worker: The number of this one.
    """
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, [str(standin), os.environ.get("LD_LIBRARY_PATH")])),
        "DMLC_ROLE": role,
        "DMLC_NUM_WORKER": str(workers),
        "DMLC_NUM_SERVER": "1",
        "DMLC_PS_ROOT_URI": LOOPBACK,
        "DMLC_PS_ROOT_PORT": str(port),
        "DMLC_NODE_HOST": LOOPBACK,  # where server and workers listen
        "DMLC_WORKER_ID": str(worker),
        "BYTEPS_LOCAL_RANK": "0",
        "BYTEPS_LOCAL_SIZE": "1",
        "BYTEPS_SOCKET_PATH": "/dev/shm",  # its own, see own_machine
    }


def free_port():
    """Return a port of the loopback interface that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return probe.getsockname()[1]


class Processes:
    """Named processes that write what they print to files in `folder`; a context that kills those left at its end."""

    def __init__(self, folder):
        self._folder = Path(folder)
        self._running = {}

    def start(self, name, command, environ):
        """Start a process in the repository root; it is killed too if this process is."""
        with open(self._folder / f"{name}.out", "w") as file:
            self._running[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *map(str, command)],
                cwd=ROOT,
                env=environ,
                stdout=file,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        return self._running[name]

    def start_byteps(self, standin, worker_command, workers=2):
        """Start a scheduler, a server and workers, as "scheduler", "server", "worker 0" ..."""
        port = free_port()
        for role in ("scheduler", "server"):
            self.start(
                role, [sys.executable, "-c", "import byteps.server"], byteps_environ(role, port, standin, workers)
            )
        for worker in range(workers):
            environ = byteps_environ("worker", port, standin, workers, worker)
            self.start(f"worker {worker}", own_machine(worker_command), environ)

    def output(self, name):
        """Return what a process has printed so far, on either stream."""
        return (self._folder / f"{name}.out").read_text()

    def wait(self, timeout):
        """Wait for all processes; returns their exit statuses by name.

        Raises:
            AssertionError: If one still runs after `timeout` seconds, with what it printed.
        """
        try:
            return {name: process.wait(timeout) for name, process in self._running.items()}
        except subprocess.TimeoutExpired:
            running = [name for name, process in self._running.items() if process.poll() is None]
            raise AssertionError(
                "\n".join(f"{name} still runs; it printed:\n{self.output(name)}" for name in running)
            ) from None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self._running.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _lacking(what):
    if os.environ.get("RAN_REQUIRE_ENGINES"):
        pytest.fail(what)
    pytest.skip(what)
