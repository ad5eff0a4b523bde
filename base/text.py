"""What others wrote, such as a file's name, as part of a line of our own."""

import re

__all__ = ["has_controls", "one_line"]

# What ends a line for one program or another, or steers a terminal.
CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def one_line(text):
    """The str of anything, with its control characters as escapes."""
    return CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), str(text))


def has_controls(text):
    """Whether a str has control characters in it."""
    return CONTROLS.search(text) is not None
