"""How a command ends when it cannot go on."""

import signal
import sys
import traceback

from base.text import one_line

__all__ = ["EXIT_INTERRUPTED", "EXIT_TERMINATED", "Diverged", "UserError", "WorkerLost", "report", "run_command"]

EXIT_INTERRUPTED = 128 + signal.SIGINT  # as shells report it
EXIT_TERMINATED = 128 + signal.SIGTERM


class UserError(Exception):
    """A bad flag, path, file, data set or machine, said in one line that names what to change."""

    status = 2


class Diverged(UserError):
    """A training whose numbers are finite no more."""

    status = 3


class WorkerLost(UserError):
    """Other workers of a training that do not answer any more."""


def run_command(main):
    """Call a command's ``main()`` and end as it ended; SIGTERM ends it with 143."""
    sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may have what the terminal has not
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_TERMINATED))
    try:
        main()
    except (UserError, OSError, KeyboardInterrupt) as error:
        sys.exit(report(error))


def report(error):
    """Say on stderr how a command ended. Returns its exit status.

    A `UserError`, what the operating system refuses and Ctrl-C are one line each; SystemExit has been explained by
    whoever raised it; anything else is a fault of the program's, with its traceback.
    """
    if isinstance(error, SystemExit):
        return error.code
    if isinstance(error, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    if isinstance(error, (UserError, OSError)):
        print(f"error: {one_line(error)}", file=sys.stderr)
        return getattr(error, "status", UserError.status)
    traceback.print_exception(type(error), error, error.__traceback__)
    return 1
