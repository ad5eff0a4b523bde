"""How a command ends when it cannot go on."""

import signal
import sys

__all__ = ["Diverged", "UserError", "run"]

EXIT_INTERRUPTED = 128 + signal.SIGINT  # as shells report it
EXIT_TERMINATED = 128 + signal.SIGTERM


class UserError(Exception):
    """A bad flag, path, file, data set or machine, said in one line that names what to change."""

    status = 2


class Diverged(UserError):
    """A training whose numbers are finite no more."""

    status = 3


def run(main):
    """Call a command's ``main()`` and end as it ended.

    A `UserError` and what the operating system refuses end in one line on stderr and the error's exit status, Ctrl-C in
    130 and SIGTERM in 143.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_TERMINATED))
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.status)
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(UserError.status)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
