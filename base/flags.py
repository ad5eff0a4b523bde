"""Flags that say what is wrong with them in one line. Imports nothing heavy: --help answers at once."""

import argparse
import math
import re

from base.errors import UserError
from base.text import one_line

__all__ = [
    "MOST_CLASSES",
    "HelpFormatter",
    "OneLineParser",
    "batch_size",
    "bounded_float",
    "bounded_int",
    "choose",
    "file_name",
    "fraction_above_zero",
    "fraction_below_one",
    "increasing_numbers",
    "non_negative_float",
    "non_negative_int",
    "positive_float",
    "positive_int",
    "positive_ints",
]


# What a flag's number may be where it is not 0: MXNet takes float32, and schedules multiply and divide.
SMALLEST, LARGEST = 1e-9, 1e9
LONGEST_LIST = 20
MOST_CLASSES = 2**24  # a record's label is a float32, which has the whole numbers up to here


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong with a flag in one line, without the usage before it."""

    def error(self, message):
        self.exit(2, f"error: {one_line(message)} (see {self.prog} --help)\n")


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows a default where there is one to show."""

    def _get_help_string(self, action):
        if action.default is None:
            return action.help
        # what it is as long as nothing sets another, and what Python 3.9 and 3.10 add to a flag with a negative
        said, _, _ = action.help.partition(" (default: ")
        if action.nargs == 0:
            on = action.default is True and action.const is not False  # not a negative beside it
            return f"{said} (default: on)" if on else said
        return super()._get_help_string(argparse.Namespace(**{**vars(action), "help": said}))


def choose(flag, name, table):
    """``table[name]``. Raises UserError, with the names that a flag may have, where there is none."""
    if name not in table:
        raise UserError(f"{flag} {name}: choose one of {', '.join(map(str, table))}")
    return table[name]


def _number(text, convert, accepts, meaning):
    try:
        value = convert(text)
        if math.isfinite(value) and accepts(value):
            return value
    except (ValueError, OverflowError):  # the latter by whole numbers that are larger than every float
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not {meaning}")


def bounded_int(most, least=1):
    """A flag's type: a whole number from ``least`` to ``most``."""
    meaning = f"a whole number from {least} to {most}"
    return lambda text: _number(text, int, lambda value: least <= value <= most, meaning)


def batch_size(text):
    return bounded_int(2**16)(text)


def positive_int(text):
    return _number(text, int, lambda value: 0 < value < 2**31, "a whole number above 0")


def non_negative_int(text):
    return _number(text, int, lambda value: 0 <= value < 2**31, "a whole number from 0 on")


def bounded_float(least, most):
    """A flag's type: a number from ``least`` to ``most``."""
    return lambda text: _number(
        text, float, lambda value: least <= value <= most, f"a number from {least:g} to {most:g}"
    )


def positive_float(text):
    return bounded_float(SMALLEST, LARGEST)(text)


def non_negative_float(text):
    return _number(
        text,
        float,
        lambda value: value == 0 or SMALLEST <= value <= LARGEST,
        f"0 or a number from {SMALLEST:g} to {LARGEST:g}",
    )


def fraction_below_one(text):
    """A flag's type: a number from 0 to below 1."""
    return _number(
        text, float, lambda value: value == 0 or SMALLEST <= value < 1, f"0 or a number from {SMALLEST:g} to below 1"
    )


def fraction_above_zero(text):
    """A flag's type: a number from above 0 to 1."""
    return bounded_float(SMALLEST, 1)(text)


def increasing_numbers(text):
    """ "80,120" as [80.0, 120.0]; an empty text is no number at all."""
    numbers = [positive_float(part) for part in text.split(",")] if text else []
    if numbers != sorted(set(numbers)):
        raise argparse.ArgumentTypeError(f"{text!r} does not rise from number to number")
    if len(numbers) > LONGEST_LIST:
        raise argparse.ArgumentTypeError(f"{len(numbers)} numbers are more than {LONGEST_LIST}")
    return numbers


def positive_ints(text):
    """ "2,2,2" as [2, 2, 2]; none of them above 100."""
    return [bounded_int(100)(part) for part in text.split(",")]


def file_name(text):
    """A name for files and folders: letters, digits and . _ + = - in it, the first no dot or dash."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+=-]*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no plain name (letters, digits, . _ + = -)")
    return text
