"""Trainings that are killed at random moments end as one that was left alone."""

from scripts.torture import torture


def test_trainings_survive_being_killed(tmp_path, digits, capsys):
    torture(tmp_path, digits.records["train"].parents[2], minutes=0, kills=6, epochs=1, seed=20)
    assert "all equal" in capsys.readouterr().out.splitlines()[-1]
