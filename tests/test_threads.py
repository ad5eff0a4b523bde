"""A training takes as many threads as there are idle cores, and says so."""

import types

import pytest

from base.crowd import busy_cores
from tests.test_runtime import write, write_siblings
from training.threads import choose_threads


class Machine:
    """A /proc/stat whose CPUs are busy for given shares of the time between two looks."""

    def __init__(self, root, shares):
        self.root, self._shares = root, shares
        self._write(dict.fromkeys(shares, 0.5), 1000)

    def _write(self, shares, ticks, start=0):
        lines = [f"cpu  {10 * ticks} 0 0 0 0 0 0 0 0 0"]  # the sum of all, which is no CPU
        for cpu, share in shares.items():
            busy = round(share * ticks) + start
            lines.append(f"cpu{cpu} {busy} 0 0 {ticks - round(share * ticks)} 0 0 0 0 {busy} 0")
        write(self.root / "proc/stat", "\n".join([*lines, "intr 12 0", "ctxt 5"]))

    def pause(self):
        """What passes between two looks: 50 ticks."""
        done = {cpu: (0.5 * 1000 + 50 * share) / 1050 for cpu, share in self._shares.items()}
        self._write(done, 1050)


@pytest.mark.parametrize(
    "shares, busy",
    [
        ({0: 0, 1: 0}, 0),
        ({0: 1, 1: 0}, 1),
        ({0: 1, 1: 1}, 2),
        ({0: 0.5, 1: 0.48}, 1),  # one process that moves from core to core
        ({0: 0.04, 1: 0.1}, 0),
        ({0: 1, 1: 0, 2: 1, 3: 0.9}, 3),
    ],
)
def test_cores_are_busy_by_what_passes_between_two_looks(tmp_path, shares, busy):
    machine = Machine(tmp_path, shares)
    assert busy_cores(tmp_path, cpus=shares, pause=machine.pause) == busy


def test_only_the_cpus_of_this_process_count_and_hyper_threads_of_a_core_once(tmp_path):
    write_siblings(tmp_path, {0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"})
    machine = Machine(tmp_path, {0: 1, 1: 0, 2: 1, 3: 0, 4: 1})
    assert busy_cores(tmp_path, cpus=range(4), pause=machine.pause) == 1


@pytest.mark.parametrize("stat", [None, "", "cpu0", "cpu0 1 2", "cpu0 a b c d", "cpu0 1 1 1 1 1 1 1 1", "cpux 1 1 1 1"])
def test_a_kernel_that_does_not_say_has_no_busy_cores(tmp_path, stat):
    if stat is not None:
        write(tmp_path / "proc/stat", stat)
    assert busy_cores(tmp_path, cpus=[0, 1], pause=lambda: None) == 0


def chosen(busy, cores=4, then=None, num_gpus=0, **environ):
    resumed = then and types.SimpleNamespace(checkpoint=types.SimpleNamespace(facts={"threads": then}))
    return choose_threads(num_gpus, resumed, environ, cores, cores, lambda: busy)


@pytest.mark.parametrize("busy, threads", [(10, 8), (56, 8), (58, 6), (64, 1)])
def test_a_quota_of_8_of_64_cores_is_used_whole_as_long_as_as_many_are_idle(busy, threads):
    assert choose_threads(0, None, {}, 8, 64, lambda: busy) == threads


@pytest.mark.parametrize("busy, threads", [(0, 4), (1, 3), (3, 1), (4, 1), (9, 1)])
def test_a_new_training_takes_the_idle_cores(capsys, busy, threads):
    assert chosen(busy) == threads
    said = capsys.readouterr().out
    assert said.count("\n") == (busy > 0)
    if busy:
        assert f"computing with {threads} thread" in said and "OMP_NUM_THREADS" in said


@pytest.mark.parametrize(
    "busy, then, threads, said",
    [
        (0, 4, 4, None),
        (0, 2, 2, "computing with 2 threads of 4 as before"),
        (1, 4, 4, "4 threads as before, for the same bits, but fewer would be faster"),
        (3, 1, 1, "1 thread of 4 as before"),
        (0, 8, 4, None),  # a machine with fewer cores: the run says that it has other threads
        (1, 8, 3, "computing with 3 threads, slower"),
        (0, "4", 4, None),
        (0, -1, 4, None),
        (0, True, 4, None),
        (0, 2**70, 4, None),
    ],
)
def test_a_run_that_goes_on_keeps_its_threads(capsys, busy, then, threads, said):
    assert chosen(busy, then=then) == threads
    printed = capsys.readouterr().out
    assert said in printed if said else printed == ""


@pytest.mark.parametrize(
    "given",
    [
        {"OMP_NUM_THREADS": "2"},
        {"MXNET_OMP_MAX_THREADS": "2"},
        {"HOROVOD_RANK": "0", "HOROVOD_LOCAL_SIZE": "2", "OMP_NUM_THREADS": "1"},
        {"num_gpus": 1},
    ],
    ids=str,
)
def test_what_others_have_chosen_stays(capsys, given):
    assert chosen(3, **given) is None and capsys.readouterr().out == ""


@pytest.mark.parametrize("workers, threads", [(1, 4), (2, 2), (3, 1), (8, 1)])
def test_the_workers_of_a_machine_share_its_cores(capsys, workers, threads):
    horovod = {"HOROVOD_RANK": "0", "HOROVOD_LOCAL_SIZE": str(workers)}
    byteps = {"DMLC_ROLE": "worker", "DMLC_WORKER_ID": "0", "BYTEPS_LOCAL_RANK": "0", "BYTEPS_LOCAL_SIZE": str(workers)}
    for environ in (horovod, byteps):
        assert chosen(3, then=4, **environ) == threads
    assert capsys.readouterr().out == ""


def test_a_single_core_is_not_looked_at():
    assert choose_threads(0, None, {}, 1, 1, lambda: 1 / 0) == 1
