#!/usr/bin/env python3
"""Start a training once for each device of this machine, in step with those of other machines where there are more.

COMMAND is one worker's command line. Each line of output has the worker's rank in front. Ctrl-C, SIGTERM and SIGHUP go
to all workers. When one dies, the others are stopped within ten seconds.
"""

import argparse
import fcntl
import functools
import importlib.util
import math
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # where the script is run by its path

from base.errors import UserError, run_command, stop_signals
from base.flags import OneLineParser, bounded_int, non_negative_int, positive_int
from base.output import lasting_output
from base.processes import die_with
from base.runtime import THREAD_VARIABLES, real_core_count

EPILOG = """one machine:
  scripts/launch.py --num-gpus 8 python3 cifar10_train.py --sync byteps --num-gpus 1

two machines, the first of them 10.0.0.1 and scheduler and server too:
  scripts/launch.py --role scheduler --workers 2 --servers 1 --scheduler 10.0.0.1:9000 --interface eth0
  scripts/launch.py --role server (and the same flags)
  scripts/launch.py --role worker (and the same flags) --worker-id 0 --num-gpus 8 COMMAND
  scripts/launch.py --role worker (and the same flags) --worker-id 1 --num-gpus 8 COMMAND

Machines talk by ps-lite, which neither encrypts nor asks who is there: whoever reaches its ports can read and change
the training. It listens on the address of --interface alone, by default the machine's own loopback; name no interface
but one of a trusted network.

exit status: that of the first worker that failed, 128 + N where signal N ended it; 0 where none did; 2 for bad input"""

# What each role must be given and what it may be; without a role, this machine is the only one.
EVERYBODY = {"workers", "servers", "scheduler"}
NEEDED = {
    None: {"command"},
    "scheduler": EVERYBODY,
    "server": EVERYBODY,
    "worker": {*EVERYBODY, "worker_id", "command"},
}
ALLOWED = {None: {"num_gpus"}, "scheduler": {"interface"}, "server": {"interface"}, "worker": {"interface", "num_gpus"}}

# A scheduler's or server's whole life is the import, in which Python would never come to see a Ctrl-C.
SERVE = "import signal; signal.signal(signal.SIGINT, signal.SIG_DFL); import byteps.server"

MOST_GPUS = 1024  # of a machine

PATIENCE = 8  # seconds in which the others may save a checkpoint when one has died
SAVING = 120  # the same for the first one, which saves, when all were told to stop: its disk may be slow
TICK = 0.02  # seconds between looks at the processes

SIOCGIFADDR = 0x8915  # Linux: the request for a network interface's address


def main():
    args = parse_arguments()
    environ = {**os.environ, "PYTHONUNBUFFERED": "1", **meeting_point(args)}
    environ.pop("PORT", None)  # ps-lite would have every process of the machine listen on that one
    if args.role in ("scheduler", "server"):
        if importlib.util.find_spec("byteps") is None:
            raise UserError("BytePS is not installed here: scripts/install_byteps.sh builds it")
        status = supervise({args.role: ([sys.executable, "-c", SERVE], environ)})
    else:
        with tempfile.TemporaryDirectory(prefix=f"launch-{os.getpid()}-", dir="/tmp") as folder:
            # BytePS removes what it finds under the names of its sockets: in /tmp itself, those of another training.
            environ.setdefault("BYTEPS_SOCKET_PATH", folder)
            with lasting_output():
                status = supervise(workers(args, environ))
    sys.exit(status)


def parse_arguments():
    parser = OneLineParser(
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        usage="%(prog)s [FLAGS] COMMAND ...",
    )
    parser.add_argument(
        "--num-gpus",
        type=bounded_int(MOST_GPUS, least=0),
        help="workers to start, one a GPU; 0 starts one for the CPU (default: as many as NVIDIA_VISIBLE_DEVICES names)",
    )
    group = parser.add_argument_group("more than one machine")
    group.add_argument("--role", choices=["scheduler", "server", "worker"], help="what this call starts")
    group.add_argument("--workers", type=positive_int, help="machines with workers, each with the same number of GPUs")
    group.add_argument("--servers", type=positive_int, help="servers in all")
    group.add_argument("--scheduler", type=host_and_port, metavar="HOST:PORT", help="where the scheduler listens")
    group.add_argument("--worker-id", type=non_negative_int, help="number of this machine among --workers, from 0 on")
    group.add_argument("--interface", help="network interface to listen on (default: lo)")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND", help="what each worker runs")
    args = parser.parse_args()

    if args.command[:1] == ["--"]:
        del args.command[0]
    role = "one machine" if args.role is None else f"--role {args.role}"
    for name, value in vars(args).items():
        flag = "COMMAND" if name == "command" else f"--{name.replace('_', '-')}"
        given = value not in (None, [])
        if given and name != "role" and name not in NEEDED[args.role] | ALLOWED[args.role]:
            parser.error(f"{flag} is not for {role}")
        if not given and name in NEEDED[args.role]:
            parser.error(f"{role} needs {flag}")
    if args.worker_id is not None and args.worker_id >= args.workers:
        parser.error(f"--worker-id {args.worker_id} is not below --workers {args.workers}")
    return args


def host_and_port(text):
    """ "10.0.0.1:9000" as ("10.0.0.1", 9000)."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is no HOST:PORT")
    return host, int(port)


def meeting_point(args):
    """BytePS's and ps-lite's variables that are the same for all processes of this machine.

    Raises UserError where the scheduler cannot listen, or cannot be reached by what listens on --interface.
    """
    host, port, here = "127.0.0.1", 0, "127.0.0.1"  # for one machine, on which BytePS starts no ps-lite
    if args.role is not None:
        name, port = args.scheduler
        interface = args.interface or "lo"
        host, here = address_of_host(name), address_of_interface(interface)
        if args.role == "scheduler":
            if host != here:
                raise UserError(f"--scheduler {name} is {host}, but --interface {interface} has the address {here}")
            check_free(host, port)
        elif here.startswith("127.") and not host.startswith("127."):
            raise UserError(
                f"--interface {interface} cannot be reached from --scheduler {name}: name another interface"
            )
        elif not listens(host, port):
            print(f"waiting for the scheduler at {host}:{port}", flush=True)
    return {
        "DMLC_ROLE": args.role or "worker",
        "DMLC_NUM_WORKER": str(args.workers or 1),
        "DMLC_NUM_SERVER": str(args.servers or 0),
        "DMLC_PS_ROOT_URI": host,  # as a number: ps-lite's sockets do not listen on a name
        "DMLC_PS_ROOT_PORT": str(port),
        "DMLC_NODE_HOST": here,
        "DMLC_USE_KUBERNETES": "0",  # with which the scheduler would listen on every interface
        "BYTEPS_FORCE_DISTRIBUTED": str(int(args.role is not None)),  # a single worker machine too has its server
        "NCCL_SOCKET_IFNAME": os.environ.get("NCCL_SOCKET_IFNAME", "lo"),  # BytePS's NCCL stays on its machine
    }


def address_of_host(name):
    try:
        return socket.gethostbyname(name)
    except OSError as error:
        raise UserError(f"--scheduler {name}: {error.strerror}") from error
    except UnicodeError:
        raise UserError(f"--scheduler {name} is no name of a host") from None


def address_of_interface(name):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            answer = fcntl.ioctl(probe, SIOCGIFADDR, struct.pack("256s", os.fsencode(name)[:15]))
        except OSError as error:
            present = ", ".join(name for _, name in socket.if_nameindex())
            raise UserError(f"--interface {name} has no IPv4 address; this machine's are {present}") from error
    return socket.inet_ntoa(answer[20:24])


def check_free(host, port):
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as ps-lite does it: past connections do not count
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(f"the scheduler cannot listen on {host}:{port}: {error.strerror}") from error


def listens(host, port):
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True


def workers(args, environ):
    """The workers of this machine, {rank: (command, environment)}.

    Raises UserError where neither --num-gpus nor NVIDIA_VISIBLE_DEVICES says how many, or the latter too many.
    """
    if args.num_gpus is None:
        names = environ.get("NVIDIA_VISIBLE_DEVICES", "")
        if names in ("", "all", "none", "void"):  # words of NVIDIA's container runtime
            raise UserError("give --num-gpus: NVIDIA_VISIBLE_DEVICES does not name the GPUs")
        count = len(names.split(","))
        if count > MOST_GPUS:
            raise UserError(f"NVIDIA_VISIBLE_DEVICES names {count} GPUs, which are more than {MOST_GPUS}")
    else:
        count = max(1, args.num_gpus)
        if args.num_gpus:
            environ["NVIDIA_VISIBLE_DEVICES"] = ",".join(map(str, range(count)))
    if not any(environ.get(name) for name in THREAD_VARIABLES):
        environ["OMP_NUM_THREADS"] = str(max(1, real_core_count() // count))
    environ["BYTEPS_LOCAL_SIZE"] = str(count)
    environ["DMLC_WORKER_ID"] = str(args.worker_id or 0)
    first = count * (args.worker_id or 0)  # BytePS too ranks machine after machine
    return {
        f"{first + local_rank}": (args.command, {**environ, "BYTEPS_LOCAL_RANK": str(local_rank)})
        for local_rank in range(count)
    }


def supervise(commands):
    """Run the processes {name: (command, environment)} until all have ended, and stop the others when one dies.

    Returns the exit status of the first that failed, or 0.
    """
    received = []
    for number in stop_signals():
        signal.signal(number, lambda number, _: received.append(number))
    started, readers = {}, []
    try:
        for name, (command, environ) in commands.items():
            started[name] = start(command, environ)
        # Threads come last: a process is forked from this one more safely where there are none.
        for name, process in started.items():
            for stream, out in (process.stdout, sys.stdout.buffer), (process.stderr, sys.stderr.buffer):
                readers.append(threading.Thread(target=copy_lines, args=(name, stream, out), daemon=True))
                readers[-1].start()
        return wait(started, received)
    finally:
        send(signal.SIGKILL, started.values())  # what they have started themselves
        until = time.monotonic() + 30
        for reader in readers:
            reader.join(max(0, until - time.monotonic()))


def start(command, environ):
    """Start a process as the leader of a group: a terminal's Ctrl-C reaches it by this launcher only, and once."""
    return subprocess.Popen(
        command,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=functools.partial(die_with, os.getpid()),
    )


def wait(running, received):
    """Wait for all processes. Signals that arrive in ``received`` are passed on, from the third on as SIGKILL; when one
    process has died, or has ended by a signal, the others have `PATIENCE`, and the first one in that case `SAVING`."""
    running, status, passed_on, deadlines = dict(running), 0, [], dict.fromkeys(running, math.inf)
    died = False
    while running:
        while received:
            passed_on.append(received.pop(0))
            send(passed_on[-1] if len(passed_on) < 3 else signal.SIGKILL, running.values())
        for name, process in list(running.items()):
            if process.poll() is None:
                continue
            del running[name]
            ended = process.returncode if process.returncode >= 0 else 128 - process.returncode
            status = status or ended
            if not ended:
                continue
            told = ended - 128 in passed_on
            if not told and not died:
                died = True
                say(name, process.returncode, others=bool(running))
                send(signal.SIGTERM, running.values())
            for other in running:
                patience = SAVING if other == "0" and not died else PATIENCE
                deadlines[other] = min(deadlines[other], time.monotonic() + patience)
        late = [process for name, process in running.items() if time.monotonic() > deadlines[name]]
        send(signal.SIGKILL, late)
        time.sleep(TICK)
    return status


def send(number, processes):
    """Send a signal to the groups of processes."""
    for process in processes:
        try:
            os.killpg(process.pid, number)
        except (ProcessLookupError, PermissionError):  # the latter: another user's by sudo, and the others' turn comes
            continue


printing = threading.Lock()


def copy_lines(name, stream, out):
    """Copy a stream line by line with a name in front, until either end closes it."""
    with stream:
        for line in stream:
            end = b"" if line.endswith(b"\n") else b"\n"
            try:
                with printing:
                    out.write(b"[%s] %s%s" % (name.encode(), line, end))
                    out.flush()
            except OSError:
                return  # nobody reads on: the process learns it from its own pipe


def say(name, returncode, others):
    who = f"rank {name}" if name.isdecimal() else f"the {name}"
    names = {number.value: number.name for number in signal.Signals}  # real-time signals have none
    how = f"status {returncode}" if returncode >= 0 else names.get(-returncode, f"signal {-returncode}")
    with printing:
        print(f"error: {who} ended with {how}{': stopping the others' if others else ''}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_command(main)
