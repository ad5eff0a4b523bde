"""The launcher: what its workers are given, how their lines are shown, and how they end together."""

import importlib.util
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from base.runtime import real_core_count
from scripts.launch import PATIENCE, SAVING, wait
from tests.conftest import ROOT, wait_until
from tests.engines import free_port

LIMIT = 120  # seconds after which a launcher hangs, on a machine that is busy with other things

LAUNCH = [sys.executable, "scripts/launch.py"]
SEVERAL = ["--workers", "2", "--servers", "1", "--scheduler", "127.0.0.1:9000"]

# What a worker prints of its environment.
VARIABLES = r"^(DMLC_|BYTEPS_|PORT$|OMP_NUM_THREADS|MXNET_OMP_MAX_THREADS|NVIDIA_VISIBLE_DEVICES)"


@pytest.fixture
def environ(monkeypatch):
    """A function that clears what the launcher sets, and then sets some variables itself."""

    def replace(**variables):
        for name in list(os.environ):
            if re.match(VARIABLES, name):
                monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    replace()
    return replace


@pytest.fixture
def start():
    """Starts a launcher; whatever it has started is gone when the test ends."""
    launchers = []

    def launch(*words, code=None):
        words = [*words, *([sys.executable, "-c", code] if code else [])]
        launchers.append(
            subprocess.Popen(
                [*LAUNCH, *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
            )
        )
        return launchers[-1]

    yield launch
    for launcher in launchers:
        launcher.kill()  # and with it the workers
        launcher.communicate()
        for left in Path("/tmp").glob(f"launch-{launcher.pid}-*"):
            shutil.rmtree(left)


@pytest.fixture
def launch(start):
    """Runs a launcher to its end: (exit status, stdout, stderr)."""

    def run(*words, code=None):
        launcher = start(*words, code=code)
        printed, errors = launcher.communicate(timeout=LIMIT)
        return launcher.returncode, printed, errors

    return run


def variables_of(printed):
    """What workers printed of their environment, {rank: {name: value}}."""
    ranks = {}
    for rank, name, value in re.findall(r"^\[(\d+)\] (\w+)=(.*)$", printed, re.MULTILINE):
        ranks.setdefault(int(rank), {})[name] = value
    return ranks


PRINT = f"import os, re\nfor n, v in os.environ.items():\n  if re.match({VARIABLES!r}, n): print(n, v, sep='=')"


def test_workers_of_one_machine_are_given_bytepss_variables(launch, environ):
    environ(PORT="8080")  # an application server's
    status, printed, errors = launch("--num-gpus", "3", code=PRINT)
    ranks = variables_of(printed)
    assert (status, errors, sorted(ranks)) == (0, "", [0, 1, 2])
    for rank, found in ranks.items():
        sockets = found.pop("BYTEPS_SOCKET_PATH")
        assert found == {
            "BYTEPS_FORCE_DISTRIBUTED": "0",
            "BYTEPS_LOCAL_RANK": str(rank),
            "BYTEPS_LOCAL_SIZE": "3",
            "DMLC_NODE_HOST": "127.0.0.1",
            "DMLC_NUM_SERVER": "0",
            "DMLC_NUM_WORKER": "1",
            "DMLC_PS_ROOT_PORT": "0",
            "DMLC_PS_ROOT_URI": "127.0.0.1",
            "DMLC_ROLE": "worker",
            "DMLC_USE_KUBERNETES": "0",
            "DMLC_WORKER_ID": "0",
            "NVIDIA_VISIBLE_DEVICES": "0,1,2",
            "OMP_NUM_THREADS": str(max(1, real_core_count() // 3)),
        }
    assert not os.path.exists(sockets)  # removed with the last worker


def test_two_trainings_of_one_machine_have_sockets_of_their_own(launch, environ):
    first, second = (variables_of(launch("--num-gpus", "1", code=PRINT)[1])[0] for _ in range(2))
    assert first["BYTEPS_SOCKET_PATH"] != second["BYTEPS_SOCKET_PATH"]


def test_workers_of_several_machines_are_ranked_machine_after_machine(launch, environ):
    status, printed, _ = launch(
        *("--role", "worker", "--workers", "3", "--servers", "2", "--scheduler", "localhost:9"),
        *("--worker-id", "2", "--num-gpus", "2"),
        code=PRINT,
    )
    ranks = variables_of(printed)
    assert (status, sorted(ranks)) == (0, [4, 5])
    expected = {"DMLC_NUM_WORKER": "3", "DMLC_NUM_SERVER": "2", "DMLC_WORKER_ID": "2", "DMLC_ROLE": "worker"}
    expected |= {"DMLC_PS_ROOT_URI": "127.0.0.1", "DMLC_PS_ROOT_PORT": "9", "BYTEPS_FORCE_DISTRIBUTED": "1"}
    for rank, found in ranks.items():
        assert expected.items() <= found.items()
        assert found["BYTEPS_LOCAL_RANK"] == str(rank - 4)


def test_the_environment_names_the_gpus_where_no_flag_does(launch, environ):
    environ(NVIDIA_VISIBLE_DEVICES="4,6")
    ranks = variables_of(launch(code=PRINT)[1])
    assert sorted(ranks) == [0, 1]
    assert ranks[0]["NVIDIA_VISIBLE_DEVICES"] == "4,6"
    assert sorted(variables_of(launch("--num-gpus", "1", code=PRINT)[1])) == [0]


@pytest.mark.parametrize("variables", [{}, {"NVIDIA_VISIBLE_DEVICES": "all"}])
def test_nothing_starts_where_nothing_says_how_many(launch, environ, variables):
    environ(**variables)
    status, printed, errors = launch(code=PRINT)
    assert (status, printed) == (2, "")
    assert errors == "error: give --num-gpus: NVIDIA_VISIBLE_DEVICES does not name the GPUs\n"


def test_more_gpus_than_a_machine_has_are_refused(launch, environ):
    environ(NVIDIA_VISIBLE_DEVICES="," * 5000)
    status, printed, errors = launch(code=PRINT)
    assert (status, printed) == (2, "")
    assert errors == "error: NVIDIA_VISIBLE_DEVICES names 5001 GPUs, which are more than 1024\n"


def test_no_gpu_is_one_worker_for_the_cpu(launch, environ):
    ranks = variables_of(launch("--num-gpus", "0", code=PRINT)[1])
    assert list(ranks) == [0]
    assert "NVIDIA_VISIBLE_DEVICES" not in ranks[0]


def test_a_thread_count_of_the_users_own_stays(launch, environ):
    environ(OMP_NUM_THREADS="5")
    assert variables_of(launch("--num-gpus", "2", code=PRINT)[1])[1]["OMP_NUM_THREADS"] == "5"


def test_lines_stay_whole_and_carry_their_rank(launch):
    code = """
import os, sys
rank = os.environ["BYTEPS_LOCAL_RANK"]
for number in range(300):
    for part in rank, " ", str(number), " ", "x" * 3000, chr(10):  # in pieces, as a line may arrive
        sys.stdout.write(part)
        sys.stdout.flush()
    print("warning", number, file=sys.stderr)
print("no line end", end="")
"""
    status, printed, errors = launch("--num-gpus", "3", code=code)
    assert status == 0
    lines = printed.splitlines()
    for rank in range(3):
        own = [line for line in lines if line.startswith(f"[{rank}] ")]
        assert own == [f"[{rank}] {rank} {number} {'x' * 3000}" for number in range(300)] + [f"[{rank}] no line end"]
    assert len(lines) == 3 * 301
    assert sorted(errors.splitlines()) == sorted(f"[{rank}] warning {n}" for rank in range(3) for n in range(300))


# For the code of workers: waits for a file, which stands for something that has happened.
WAIT_FOR = """
import os, pathlib, signal, time
def wait_for(path):
    until = time.monotonic() + 60
    while not os.path.exists(path) and time.monotonic() < until:
        time.sleep(0.01)
    return os.path.exists(path)
"""


def test_lines_are_shown_while_the_worker_goes_on(start, monkeypatch, tmp_path):
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    read = tmp_path / "read"
    code = f"{WAIT_FOR}print('at once')\nprint('read' if wait_for({str(read)!r}) else 'too late')"
    launcher = start("--num-gpus", "1", code=code)
    assert launcher.stdout.readline() == "[0] at once\n"
    read.touch()
    assert launcher.stdout.readline() == "[0] read\n"


@pytest.fixture
def one_that_ends(tmp_path):
    """Makes the code of three workers, of which rank 1 ends in some way once the others have done their first part."""

    def make(how, first, then):
        ready = [str(tmp_path / f"ready-{rank}") for rank in (0, 2)]
        return f"""{WAIT_FOR}
rank = os.environ["BYTEPS_LOCAL_RANK"]
if rank == "1":
    assert all(map(wait_for, {ready!r}))
    {how}
{first}
pathlib.Path({str(tmp_path)!r}, "ready-" + rank).touch()
{then}
"""

    return make


IGNORE_SIGTERM = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"
FOR_EVER = "while True: signal.pause()"


@pytest.mark.parametrize(
    "how, first, status, said",
    [
        ("os._exit(7)", "", 7, "status 7"),
        ("os.kill(os.getpid(), 9)", "", 137, "SIGKILL"),
        ("os.kill(os.getpid(), 40)", "", 168, "signal 40"),
        ("os._exit(3)", IGNORE_SIGTERM, 3, "status 3"),
    ],
)
def test_a_death_ends_the_others(launch, one_that_ends, how, first, status, said):
    result = launch("--num-gpus", "3", code=one_that_ends(how, first, FOR_EVER))
    assert result == (status, "", f"error: rank 1 ended with {said}: stopping the others\n")


def test_the_others_are_given_less_than_ten_seconds_but_when_all_were_told_to_stop():
    assert 0 < PATIENCE < 10 and SAVING >= 60


def test_the_last_worker_may_save_for_long_when_all_were_told_to_stop(monkeypatch):
    monkeypatch.setattr("scripts.launch.PATIENCE", 0.1)
    code = (
        "import os, signal, sys, time\n"
        "def save(*_):\n"
        "    while os.path.exists('/proc/{}'): time.sleep(0.01)\n"  # until the launcher knows that the other has ended
        "    time.sleep({})\n"
        "    sys.exit(143)\n"
        "signal.signal(15, save)\nprint(flush=True)\nsignal.pause()"
    )
    running, awaited, seconds = {}, "none", 0
    for name in ("1", "0"):
        command = [sys.executable, "-c", code.format(awaited, seconds)]
        running[name] = subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE)
        running[name].stdout.readline()
        awaited, seconds = running[name].pid, 0.5
    assert wait(running, [signal.SIGTERM]) == 143
    assert [process.returncode for process in running.values()] == [143, 143]


def test_the_others_may_save_when_one_dies(launch, one_that_ends):
    saves = "signal.signal(15, lambda *_: (time.sleep(1), print('saved'), os._exit(143)))"
    status, printed, _ = launch("--num-gpus", "3", code=one_that_ends("os._exit(5)", saves, FOR_EVER))
    assert (status, sorted(printed.splitlines())) == (5, ["[0] saved", "[2] saved"])


def test_a_worker_that_finishes_is_no_death(launch, one_that_ends, tmp_path):
    pid = str(tmp_path / "pid")
    finish = f"open({pid + '.new'!r}, 'w').write(str(os.getpid())); os.rename({pid + '.new'!r}, {pid!r}); os._exit(0)"
    # Rank 1 is in /proc until the launcher has seen its end.
    go_on = f"""
assert wait_for({pid!r})
while os.path.exists("/proc/" + open({pid!r}).read()):
    time.sleep(0.01)
time.sleep(0.2)
print("done")
"""
    code = one_that_ends(finish, "", go_on)
    status, printed, errors = launch("--num-gpus", "3", code=code)
    assert (status, sorted(printed.splitlines()), errors) == (0, ["[0] done", "[2] done"], "")


# A worker that takes its time over each signal and ends with the status of shells, as a training does.
SIGNALLED = """
import os, signal, time
def end(number, _):
    print("signal", number)
    time.sleep(0.3 * float(os.environ["BYTEPS_LOCAL_RANK"]))
    os._exit(128 + number)
signal.signal(signal.SIGINT, end)
signal.signal(signal.SIGTERM, end)
signal.signal(signal.SIGHUP, end)
print("ready")
time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_go_to_all_workers_and_their_end_is_waited_for(start, number):
    launcher = start("--num-gpus", "3", code=SIGNALLED)
    assert sorted(launcher.stdout.readline() for _ in range(3)) == [f"[{rank}] ready\n" for rank in range(3)]
    launcher.send_signal(number)
    printed, errors = launcher.communicate(timeout=LIMIT)
    assert sorted(printed.splitlines()) == [f"[{rank}] signal {int(number)}" for rank in range(3)]
    assert (launcher.returncode, errors) == (128 + number, "")


def test_ctrl_c_of_a_terminal_arrives_once_and_a_second_one_too(start):
    code = """
import signal, time
count = 0
def note(*_):
    global count
    count += 1
    print("count", count)
    if count == 2:
        raise SystemExit(130)
signal.signal(signal.SIGINT, note)
print("ready")
time.sleep(600)
"""
    launcher = start("--num-gpus", "1", code=code)
    lines = launcher.stdout
    assert lines.readline() == "[0] ready\n"
    assert os.getpgid(only_child(launcher)) != os.getpgid(launcher.pid)  # else the terminal would reach it as well
    for count in 1, 2:
        launcher.send_signal(signal.SIGINT)
        assert lines.readline() == f"[0] count {count}\n"
    assert launcher.wait(LIMIT) == 130


def test_a_third_signal_kills(start):
    code = """
import signal, time
signal.signal(signal.SIGINT, lambda *_: print("no"))
print("ready")
while True:
    time.sleep(600)
"""
    launcher = start("--num-gpus", "1", code=code)
    assert launcher.stdout.readline() == "[0] ready\n"
    for _ in range(2):
        launcher.send_signal(signal.SIGINT)
        assert launcher.stdout.readline() == "[0] no\n"
    launcher.send_signal(signal.SIGINT)
    assert launcher.wait(LIMIT) == 128 + signal.SIGKILL


def only_child(launcher):
    with open(f"/proc/{launcher.pid}/task/{launcher.pid}/children") as file:
        (child,) = file.read().split()
    return int(child)


def state(pid):
    """The letter of ps, such as S for a process that waits; Z where there is none, or only its unread exit status."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "Z"


def test_no_worker_outlives_a_launcher_that_was_killed(start):
    launcher = start("--num-gpus", "2", code="import os, time; print(os.getpid()); time.sleep(600)")
    pids = [int(launcher.stdout.readline().split()[1]) for _ in range(2)]
    assert all(state(pid) != "Z" for pid in pids)
    launcher.kill()
    assert wait_until(lambda: all(state(pid) == "Z" for pid in pids))


def test_what_a_worker_has_started_ends_with_it(launch):
    code = "import subprocess\nprint(subprocess.Popen(['sleep', '600']).pid)"
    status, printed, _ = launch("--num-gpus", "1", code=code)
    assert status == 0
    pid = int(printed.split()[1])
    assert wait_until(lambda: state(pid) == "Z")


def test_a_command_that_does_not_exist_is_one_line(launch):
    status, printed, errors = launch("--num-gpus", "2", "no-such-command")
    assert (status, printed, errors.count("\n")) == (2, "", 1)
    assert "no-such-command" in errors


@pytest.fixture
def byteps(tmp_path, monkeypatch):
    """A byteps.server that prints its variables, in place of the real one."""
    (tmp_path / "byteps").mkdir()
    (tmp_path / "byteps" / "__init__.py").touch()
    (tmp_path / "byteps" / "server.py").write_text(PRINT)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


@pytest.mark.parametrize("role", ["scheduler", "server"])
def test_scheduler_and_server_are_given_ps_lites_variables(launch, environ, role, byteps):
    port = free_port()
    status, printed, errors = launch(
        "--role", role, "--workers", "2", "--servers", "3", "--scheduler", f"localhost:{port}"
    )
    assert (status, errors) == (0, "")
    lines = printed.splitlines()
    waiting = [f"waiting for the scheduler at 127.0.0.1:{port}"] if role == "server" else []
    assert lines[: len(waiting)] == waiting
    expected = {"DMLC_ROLE": role, "DMLC_NUM_WORKER": "2", "DMLC_NUM_SERVER": "3", "DMLC_PS_ROOT_URI": "127.0.0.1"}
    expected |= {"DMLC_PS_ROOT_PORT": str(port), "DMLC_NODE_HOST": "127.0.0.1", "DMLC_USE_KUBERNETES": "0"}
    assert {f"[{role}] {name}={value}" for name, value in expected.items()} <= set(lines)


def test_ctrl_c_ends_a_server_that_is_deep_in_native_code(start, byteps, tmp_path):
    lock_twice = "lock, mutex = ctypes.CDLL(None).pthread_mutex_lock, ctypes.create_string_buffer(64)\nlock(mutex)\n"
    server = f"import ctypes\n{lock_twice}print('deep')\nlock(mutex)\n"
    (tmp_path / "byteps" / "server.py").write_text(server)
    launcher = start("--role", "server", *SEVERAL)
    while launcher.stdout.readline() != "[server] deep\n":
        assert launcher.poll() is None
    assert wait_until(lambda: state(only_child(launcher)) == "S")
    launcher.send_signal(signal.SIGINT)
    assert launcher.wait(LIMIT) == 130


def test_a_port_in_use_is_said(launch, byteps):
    with socket.create_server(("127.0.0.1", 0)) as other:
        where = f"127.0.0.1:{other.getsockname()[1]}"
        result = launch("--role", "scheduler", "--workers", "2", "--servers", "1", "--scheduler", where)
    assert result == (2, "", f"error: the scheduler cannot listen on {where}: Address already in use\n")


def test_what_listens_is_not_waited_for(launch, environ):
    with socket.create_server(("127.0.0.1", 0)) as scheduler:
        where = f"127.0.0.1:{scheduler.getsockname()[1]}"
        words = ["--role", "worker", "--workers", "2", "--servers", "1", "--scheduler", where, "--worker-id", "0"]
        assert launch(*words, "--num-gpus", "0", code="print('on')") == (0, "[0] on\n", "")


@pytest.mark.parametrize(
    "words, said",
    [
        (["--num-gpus", "-1", "true"], "'-1' is not a whole number from 0 to 1024"),
        (["--num-gpus", "2147483647", "true"], "'2147483647' is not a whole number from 0 to 1024"),
        (["--num-gpu", "1", "true"], "unrecognized arguments: --num-gpu"),
        (["--num-gpus", "1"], "one machine needs COMMAND"),
        (["--num-gpus", "1", "--workers", "2", "true"], "--workers is not for one machine"),
        (["--num-gpus", "1", "--interface", "lo", "true"], "--interface is not for one machine"),
        (["--role", "boss"], "invalid choice: 'boss'"),
        (["--role", "server", "--workers", "2", "--servers", "1"], "--role server needs --scheduler"),
        (["--role", "server", *SEVERAL, "--num-gpus", "1"], "--num-gpus is not for --role server"),
        (["--role", "scheduler", *SEVERAL, "true"], "COMMAND is not for --role scheduler"),
        (["--role", "worker", *SEVERAL, "true"], "--role worker needs --worker-id"),
        (["--role", "worker", *SEVERAL, "--worker-id", "2", "true"], "--worker-id 2 is not below --workers 2"),
        (["--role", "server", *SEVERAL[:-1], "host"], "'host' is no HOST:PORT"),
        (["--role", "server", *SEVERAL[:-1], "127.0.0.1:65536"], "'127.0.0.1:65536' is no HOST:PORT"),
        (["--role", "server", *SEVERAL[:-1], "no.such.host.invalid:9000"], "no.such.host.invalid: "),
        (["--role", "server", *SEVERAL[:-1], "a..b:9000"], "--scheduler a..b is no name of a host"),
        (["--role", "server", *SEVERAL[:-1], f"{'a' * 300}:9000"], "is no name of a host"),
        (["--role", "server", *SEVERAL, "--interface", "none0"], "--interface none0 has no IPv4 address"),
        (["--role", "server", *SEVERAL[:-1], "192.0.2.1:9000"], "--interface lo cannot be reached from"),
        (["--role", "scheduler", *SEVERAL[:-1], "192.0.2.1:9000"], "but --interface lo has the address 127.0.0.1"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(launch, words, said):
    status, printed, errors = launch(*words)
    assert (status, printed, errors.count("\n")) == (2, "", 1)
    assert errors.startswith("error: ") and said in errors


def test_a_server_without_byteps_says_how_to_get_it(launch):
    if importlib.util.find_spec("byteps"):
        pytest.skip("BytePS is installed here")
    status, _, errors = launch("--role", "server", *SEVERAL)
    assert (status, errors) == (2, "error: BytePS is not installed here: scripts/install_byteps.sh builds it\n")


def test_help_imports_nothing_heavy():
    command = [sys.executable, "-X", "importtime", "scripts/launch.py", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    assert "trusted network" in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "argparse" in imported and not imported & {"numpy", "mxnet"}


SHOW = "import os, sys\nprint(os.environ.get('OMP_NUM_THREADS'), *sys.argv[1:], sep='|')\n"


@pytest.fixture
def script(tmp_path, environ, monkeypatch):
    """Runs train_bps.sh or train_hvd.sh, with all that they call but the check for GPUs replaced by what prints."""
    for folder in "scripts", "base":
        shutil.copytree(ROOT / folder, tmp_path / folder)
    (tmp_path / "scripts" / "launch.py").write_text(SHOW)
    tools = {
        f"scripts/{name}.sh": f"#!/bin/sh\necho {name}\n" for name in ("setup", "install_byteps", "install_horovod")
    }
    tools[".venv/bin/python"] = f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n'
    tools["engines/horovod/runner/__init__.py"] = ""
    tools["engines/horovod/runner/launch.py"] = f"def run_commandline():\n    exec({SHOW!r})\n"
    for name, text in tools.items():
        tool = tmp_path / name
        tool.parent.mkdir(parents=True, exist_ok=True)
        tool.write_text(text)
        tool.chmod(0o755)
    for engine in "byteps", "horovod":
        (tmp_path / "engines" / engine).mkdir(parents=True, exist_ok=True)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "engines"))

    def run(name, *flags, installed=True):
        for module in tmp_path.glob("engines/*"):
            # it is asked for by python -c, and installed then
            missing = "import sys\nif sys.argv[0] == '-c':\n    raise ImportError\n"
            (module / "__init__.py").write_text("" if installed else missing)
        command = [tmp_path / "scripts" / f"{name}.sh", *flags]
        return subprocess.run(command, cwd=tmp_path.parent, capture_output=True, text=True)

    return run


RECIPE = ".venv/bin/python cifar10_train.py --recipe tricks --num-layers 56 --num-gpus 1"


@pytest.mark.parametrize("name, sync", [("train_bps", "byteps"), ("train_hvd", "horovod")])
def test_the_scripts_for_8_gpus_train_the_recipe_with_flags_of_the_users_own(script, monkeypatch, name, sync):
    def started(*flags, **options):
        done = script(name, *flags, **options)
        assert (done.returncode, done.stderr) == (0, "")
        *before, last = done.stdout.splitlines()
        return before, last.split("|")

    cpu = ("--num-gpus", "0", "--run-name", "a b")
    before, words = started(*cpu)
    assert before == ["setup"]
    starter, threads = (["--num-gpus"], "None") if sync == "byteps" else (["-np"], str(max(1, real_core_count() // 8)))
    gloo = [] if sync == "byteps" else ["--gloo"]
    assert words == [threads, *starter, "8", *gloo, *RECIPE.split(), "--sync", sync, *cpu]
    monkeypatch.setenv("NUM_GPUS", "2")
    before, words = started(*cpu, installed=False)
    assert before == ["setup", f"install_{sync}"]
    assert words[2] == "2"


@pytest.mark.parametrize("name", ["train_bps", "train_hvd"])
def test_the_scripts_for_8_gpus_name_what_is_missing_before_they_build_anything(script, monkeypatch, name):
    monkeypatch.setenv("NUM_GPUS", "99")
    done = script(name, installed=False)
    assert (done.returncode, done.stdout) == (2, "setup\n")
    assert re.fullmatch(r"error: --num-gpus 99: MXNet sees \d+ here; .*\n", done.stderr)
    monkeypatch.setenv("NUM_GPUS", "two")
    done = script(name)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "error: NUM_GPUS=two is no number of GPUs\n")
