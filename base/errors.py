"""How a command ends when it cannot go on."""

import contextlib
import signal
import sys
import traceback

from base.output import open_closed_descriptors, settled_output
from base.text import one_line

__all__ = ["EXIT_INTERRUPTED", "Diverged", "UserError", "WorkerLost", "report", "run_command", "stop_signals"]

OWN_PACKAGES = {"base", "data", "model", "scripts", "training"}
EXIT_INTERRUPTED = 128 + signal.SIGINT  # as shells report it


class UserError(Exception):
    """A bad flag, path, file, data set or machine, said in one line that names what to change.

    Its str is one line whatever names it quotes: control characters in them are escaped.
    """

    status = 2

    def __str__(self):
        return one_line(super().__str__())


class Diverged(UserError):
    """A training whose numbers are finite no more."""

    status = 3


class WorkerLost(UserError):
    """Other workers of a training that do not answer any more."""


def stop_signals():
    """The signals that stop a command: SIGTERM, Ctrl-C, and that of a terminal which closes unless nohup ignores it."""
    hangup = [] if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGTERM, signal.SIGINT, *hangup]


def run_command(main):
    """Call a command's ``main()`` and end as it ended; SIGTERM ends it with 143, SIGHUP with 129."""
    open_closed_descriptors()
    sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may have what the terminal has not
    for number in stop_signals():
        if number != signal.SIGINT:  # which is Python's KeyboardInterrupt
            signal.signal(number, lambda number, _: sys.exit(128 + number))
    with settled_output():
        try:
            main()
            sys.stdout.flush()
        except (UserError, OSError, MemoryError, ModuleNotFoundError, KeyboardInterrupt) as error:
            sys.exit(report(error))


def report(error):
    """Say on stderr how a command ended. Returns its exit status.

    A `UserError`, what the operating system refuses, a package that is missing and Ctrl-C are one line each; SystemExit
    has been explained by whoever raised it; anything else is a fault of the program's, with its traceback.
    """
    if isinstance(error, SystemExit):
        return error.code
    if isinstance(error, MemoryError):
        error = UserError("out of memory")
    if isinstance(error, ModuleNotFoundError) and error.name and error.name.partition(".")[0] not in OWN_PACKAGES:
        error = UserError(f"{error.name} is not installed in {sys.executable}: scripts/setup.sh makes .venv with it")
    with contextlib.suppress(OSError):  # stderr may be what the system refuses
        if isinstance(error, KeyboardInterrupt):
            print("interrupted", file=sys.stderr)
        elif isinstance(error, (UserError, OSError)):
            print(f"error: {one_line(error)}", file=sys.stderr)
        else:
            traceback.print_exception(type(error), error, error.__traceback__)
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    return getattr(error, "status", UserError.status if isinstance(error, OSError) else 1)
