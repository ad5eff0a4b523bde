"""The processes of one training, which keep in step: one alone, BytePS or Horovod.

All that they exchange are sums. The two engines differ in how they add an array up over the processes, and in nothing
else that the training sees. Every exchange has a name, which always means an array of the same size, and all processes
make the same exchanges in the same order. In messages a process is a worker, as the engines call it.
"""

import concurrent.futures
import importlib
import math
import os
import sys
import time

import mxnet as mx
import numpy as np

from base.devices import contexts, explaining_memory
from base.errors import UserError, WorkerLost, report
from training.distributed.launcher import launch_info
from training.flat_arrays import FlatTrainer

__all__ = ["BytePSGroup", "HorovodGroup", "SingleProcess", "start"]

GRACE = 3  # seconds that a worker told to stop goes on waiting for the others; horovodrun by itself kills it after 5


def start(engine, num_gpus, half=False, timeout=600):
    """The process group to enter: of ``engine``, or of the launcher that started this process where that is None.

    Parameters
    ----------
    engine : str or None
        "none", "byteps" or "horovod".
    num_gpus, half, timeout
        Of `ProcessGroup`; a process alone may have more than one GPU.

    Raises UserError where the engine is not installed or no launcher started this process, and where one started
    several that are to know nothing of each other.
    """
    launch = launch_info()
    engine = engine or launch.engine
    if engine == "none":
        if launch.rank > 0 or launch.local_size > 1:
            raise UserError(
                f"--sync none: several workers would write one run; --sync {launch.engine} keeps them in step"
            )
        return SingleProcess(contexts(num_gpus))
    if engine != launch.engine:
        launcher = {"byteps": "scripts/launch.py", "horovod": "python3 -m scripts.horovodrun"}[engine]
        raise UserError(f"--sync {engine}: start the workers with {launcher}")
    group = {"byteps": BytePSGroup, "horovod": HorovodGroup}[engine]
    return group(num_gpus, half, timeout)


class SingleProcess:
    """A process that trains alone, and what a process is to the others if it does not.

    Parameters
    ----------
    devices : list of mxnet.Context
        What this process trains on.

    Attributes
    ----------
    rank, size : int
        Which process this is, of how many.
    local_rank : int
        Which of those on this machine.
    gradient_dtype : str
        Of gradients on their way.
    signals : training.run.signals.StopSignals or None
        Of a training that has begun. Before, the others are waited for as long as it takes.
    wishes : callable
        Of a training that has begun: one number or more of this process, as many on each, whose sums `granted_wishes`
        returns.
    """

    rank, size, local_rank = 0, 1, 0
    gradient_dtype = "float32"
    signals = None
    wishes = staticmethod(lambda: [0])

    def __init__(self, devices):
        self.devices = devices

    @property
    def is_main_process(self):
        """Whether this is the process that prints, logs and saves for all."""
        return self.rank == 0

    def trainer(self, parameters, optimizer, options):
        """A `FlatTrainer` whose gradients are summed over all processes' devices.

        What its ``step`` and ``update`` divide by is the number of images of all processes.
        """
        return FlatTrainer(parameters, optimizer, options)

    def broadcast(self, net):
        """Give all processes the first one's parameters and auxiliary states of an initialized network."""

    def sum(self, name, numbers):
        """The sums of every process's numbers, a float64 array of their shape; small numbers of things stay exact."""
        return np.asarray(numbers, np.float64)

    def agree(self, loss, figures):
        """What a step is judged by, read at once.

        ``loss`` and the ``figures`` are float32 arrays, (1,), on the first device. Returns the loss's sum over all
        processes, and a list of this one's figures.
        """
        loss, *figures = mx.nd.concat(loss, *figures, dim=0).asnumpy()
        return loss, figures

    def granted_wishes(self):
        """The sums of every process's wishes: those that came with the last step, or others where there was none."""
        return self.wishes()

    def gather(self, name, rows):
        """All processes' rows, in their order: (rows, columns) of float64 here, (size * rows, columns) out."""
        everything = np.zeros((self.size, *rows.shape))
        everything[self.rank] = rows
        return self.sum(name, everything).reshape(-1, rows.shape[1])

    def barrier(self):
        """Wait until every process is here."""
        self.sum("barrier", [0])

    def main_process_first(self, function):
        """Call ``function`` on the main process, then on the first of each machine, then on the others.

        These find the files that it makes. Returns its result.
        """
        done = False
        for turn in (self.is_main_process, self.local_rank == 0, True):
            if turn and not done:
                result, done = function(), True
            self.barrier()
        return result

    def shutdown(self):
        """Part from the other processes. All of them must come to this."""

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if error is None:
            self.shutdown()


class ProcessGroup(SingleProcess):
    """What BytePS and Horovod share. Raises UserError where ``module`` is not installed.

    Parameters
    ----------
    num_gpus : int
        Of this process: 1, or 0 for the CPU.
    half : bool
        Whether gradients travel as float16.
    timeout : float
        Seconds after which a process that does not answer is given up.
    """

    module = installer = None

    def __init__(self, num_gpus, half, timeout):
        try:
            self._engine = importlib.import_module(self.module)
        except (ImportError, OSError) as error:
            raise UserError(f"--sync needs {self.module} ({error}): bash {self.installer} installs it") from None
        if num_gpus > 1:
            raise UserError(f"--num-gpus {num_gpus}: a worker has one GPU; have more workers started instead")
        self._timeout = timeout
        if half:
            self.gradient_dtype = "float16"
        self._waiting = concurrent.futures.ThreadPoolExecutor(max_workers=1)
        self._arrays, self._over = {}, False
        self._wished, self._step_seconds = None, math.inf  # how long the first step takes, nobody knows
        self._engine.init()
        self.rank, self.size = self._engine.rank(), self._engine.size()
        self.local_rank = self._engine.local_rank()
        super().__init__(contexts(num_gpus, first=self.local_rank))

    def start_sum(self, array, name, priority=0):
        """Begin to replace an NDArray by its sum over the processes; under one name it is always the same array.

        Reading the array waits for the end, and so does `wait`, which gives up in the end.
        """
        raise NotImplementedError

    def wait(self, *arrays, usual=0.0):
        """Wait until NDArrays can be read, for which this process itself usually takes ``usual`` seconds.

        Raises WorkerLost where the engine has noticed that a worker is gone and, from the time on that there are
        `signals`, where this takes longer than --sync-timeout or, after a signal, than `GRACE`.
        """

        def ready():
            for array in arrays:
                array.wait_to_read()

        future, started = self._waiting.submit(ready), time.monotonic()
        while not concurrent.futures.wait([future], timeout=0.5).done:  # a worker waiting in MXNet would see no signal
            waited = time.monotonic() - started
            if self.signals and (waited > self._timeout or min(waited - usual, self.signals.age()) > GRACE):
                raise WorkerLost(f"worker {self.rank} has lost the others: no answer for {waited:.0f} s")
        try:
            with explaining_memory():
                future.result()
        except mx.base.MXNetError as error:
            reason = str(error).strip().splitlines()[-1]
            raise WorkerLost(f"worker {self.rank} has lost the others: {reason}") from None

    def trainer(self, parameters, optimizer, options):
        return SummingTrainer(self, self.gradient_dtype == "float16", parameters, optimizer, options)

    def broadcast(self, net):
        for number, parameter in enumerate(net.collect_params().values()):
            value = parameter.data(self.devices[0])
            if not self.is_main_process:
                value[:] = 0
            self.start_sum(value, f"parameter_{number}")
            self.wait(value)

    def sum(self, name, numbers):
        numbers = np.asarray(numbers, np.float64)
        if name not in self._arrays:
            self._arrays[name] = mx.nd.zeros(numbers.shape, ctx=self.devices[0], dtype="float64")
        array = self._arrays[name]
        array[:] = numbers
        self.start_sum(array, name)
        self.wait(array)
        return array.asnumpy()

    def agree(self, loss, figures):
        wishes = mx.nd.array(self.wishes()).as_in_context(loss.context)
        if "step" not in self._arrays:  # one array for all steps: BytePS keeps the address of the first
            self._arrays["step"] = mx.nd.zeros(1 + wishes.size, loss.context)
        array, started = self._arrays["step"], time.monotonic()
        mx.nd.concat(loss, wishes, dim=0, out=array)
        self.start_sum(array, "step")
        together = mx.nd.concat(array, *figures, dim=0)
        self.wait(together, usual=self._step_seconds)  # it has to compute its own gradients too
        self._step_seconds = time.monotonic() - started
        loss, *numbers = together.asnumpy()
        self._wished = numbers[: wishes.size]
        return loss, numbers[wishes.size :]

    def granted_wishes(self):
        wished, self._wished = self._wished, None
        return self.sum("wishes", self.wishes()) if wished is None else wished

    def shutdown(self):
        if not self._over:
            self._over = True
            self._engine.shutdown()

    def __exit__(self, kind, error, trace):
        if error is None:
            self.shutdown()
        elif not self._over:
            # the others know nothing of this worker's end, and what Python does at exit would wait for them
            status = report(error)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)


class BytePSGroup(ProcessGroup):
    """Processes that `scripts/launch.py` started."""

    module, installer = "byteps.mxnet", "scripts/install_byteps.sh"

    def __init__(self, num_gpus, half, timeout):
        self._declared = set()
        super().__init__(num_gpus, half, timeout)
        # a function without a result, whose result BytePS's Python part takes for an error number
        self._engine.ops.MXNET_LIB_CTYPES.byteps_mxnet_declare_tensor.restype = lambda _: 0

    def start_sum(self, array, name, priority=0):
        if name not in self._declared:
            self._engine.byteps_declare_tensor(name)
            self._declared.add(name)
        self._engine.byteps_push_pull(array, name=name, priority=priority, is_average=False)


class HorovodGroup(ProcessGroup):
    """Processes that `horovodrun` started."""

    module, installer = "horovod.mxnet", "scripts/install_horovod.sh"

    def start_sum(self, array, name, priority=0):
        self._engine.allreduce_(array, average=False, name=name, priority=priority)


class SummingTrainer(FlatTrainer):
    """A trainer that sums gradients over the processes of a `ProcessGroup`.

    Neither engine's own trainer, whose `step` divides by the number of images and of processes both: this one divides
    once, by what it is given. With ``half``, gradients travel as float16.
    """

    def __init__(self, group, half, parameters, optimizer, options):
        super().__init__(parameters, optimizer, options, kvstore=None)
        self._group, self._half, self._sent = group, half, {}

    def _allreduce_grads(self):
        for number, flat in enumerate(self.trained):
            (gradient,) = flat.gradients
            name = f"gradient_{number}"
            if not self._half:
                self._group.start_sum(gradient, name, priority=-number)
                continue
            if number not in self._sent:
                self._sent[number] = mx.nd.empty(gradient.shape, gradient.context, "float16")
            sent = self._sent[number]
            gradient.copyto(sent)
            self._group.start_sum(sent, name, priority=-number)
            sent.copyto(gradient)
