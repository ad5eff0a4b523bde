"""Trainings that are stopped in every way, and whose files are edited, end as one that was left alone."""

import shutil

import pytest

from base.errors import UserError
from scripts.torture import EDITS, STOPS, Life, Plan, check_end, compare, fill_disk, interrupt, terminate, torture
from tests.test_resume import FLAGS, results, snapshot, stop_at, train


def test_trainings_survive_every_stop(tmp_path, digits, capsys):
    plan = Plan(digits.records["train"].parents[2], minutes=0, stops=len(STOPS), epochs=3, seed=20)
    torture(tmp_path, plan)
    assert capsys.readouterr().out.splitlines()[-1].endswith("all equal")
    assert not list((tmp_path / "disk").iterdir())


def test_a_training_that_ended_otherwise_is_found_out(tmp_path, digits, monkeypatch):
    assert compare({"rows": 1, "log": 2}, {"rows": 1, "log": 3}) == ["log"]
    monkeypatch.setattr("scripts.torture.start", lambda *_: None)
    monkeypatch.setattr("scripts.torture._finish", lambda _: None)
    monkeypatch.setattr("scripts.torture.one_training", lambda *_: None)
    monkeypatch.setattr("scripts.torture.outcome", lambda folder: {"rows": folder.name})
    with pytest.raises(UserError, match="seed 20, training 1 differs in: rows"):
        torture(tmp_path, Plan(tmp_path, minutes=0, stops=1, epochs=3, seed=20))


@pytest.fixture(scope="module")
def runs(new_folder, digits):
    """The log folder of a run that was stopped in its third epoch, and the results of one that was not."""
    stopped, whole = new_folder("stopped"), new_folder("whole")
    train(whole, digits, *FLAGS, "--run-name", "run")
    with pytest.raises(SystemExit):
        train(stopped, digits, *FLAGS, "--run-name", "run", interrupt=stop_at((2, 1)))
    return stopped, results(whole, "run")


@pytest.mark.parametrize("edit", EDITS)
def test_no_edit_changes_what_becomes_of_a_run(runs, tmp_path, digits, edit):
    stopped, expected = runs
    folder = tmp_path / "log"
    shutil.copytree(stopped, folder)
    life = Life(folder, None, None, 0)
    assert life.can_be_edited()
    before = snapshot(folder)
    edit(life)
    assert snapshot(folder) != before
    train(folder, digits, "--resume", "run")
    assert results(folder, "run") == expected and not life.can_be_edited()


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
