"""Trainings that are stopped in every way, and whose files are edited, end as one that was left alone."""

import pytest

from base.errors import UserError
from scripts.torture import STOPS, Plan, check_end, fill_disk, interrupt, terminate, torture


def test_trainings_survive_every_stop(tmp_path, digits, capsys):
    plan = Plan(digits.records["train"].parents[2], minutes=0, stops=len(STOPS), epochs=1, seed=20)
    torture(tmp_path, plan)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.endswith("all equal") and " edited: nothing" not in last
    assert not list((tmp_path / "disk").iterdir())


@pytest.mark.parametrize(
    "way, status, said",
    [
        (terminate, 1, ""),
        (terminate, -11, ""),
        (terminate, 143, "Traceback (most recent call last):\n"),
        (terminate, 143, "one\ntwo\n"),
        (fill_disk, 2, "error: something else\n"),
        (fill_disk, 143, ""),
    ],
)
def test_a_process_that_ends_otherwise_is_found_out(way, status, said):
    with pytest.raises(UserError, match=way.__name__):
        check_end(way, status, said)
    check_end(interrupt, 130, "interrupted\n")
