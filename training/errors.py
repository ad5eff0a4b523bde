"""How a command ends when it cannot go on."""

import sys

__all__ = ["UserError", "run"]

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it


class UserError(Exception):
    """A bad flag, path, file, data set or machine, said in one line that names what to change."""


def run(main):
    """Call a command's ``main()``; a `UserError` ends in one line on stderr and exit status 2, Ctrl-C in 130."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
