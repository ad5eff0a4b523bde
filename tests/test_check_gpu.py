"""scripts/check_gpu.py: its table, its report and its exit status; what it checks runs when it is called."""

import json
import re
import sys

import pytest

from scripts import check_gpu
from scripts.check_gpu import FAILED, IMPOSSIBLE, PASSED, Failure, Impossible, Machine, checked


def passes(machine):
    return "all well"


def fails(machine):
    machine.log.append("its last words")
    raise Failure("accuracy 0.1")


def cannot(machine):
    raise Impossible("one GPU alone")


@pytest.mark.parametrize("broken, status", [(False, 0), (True, 1)])
def test_a_line_a_check_a_report_and_the_status(monkeypatch, tmp_path, capsys, broken, status):
    checks = {"first": passes, "second": fails if broken else passes, "third": cannot}
    monkeypatch.setattr(check_gpu, "CHECKS", checks)
    monkeypatch.setattr(sys, "argv", ["check_gpu.py", "--cpu", "--report", str(tmp_path / "new" / "report.txt")])
    with pytest.raises(SystemExit) as ended:
        check_gpu.main()
    assert ended.value.code == status
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["first", "second", "third"]
    assert "one GPU alone" in lines[2] and ("accuracy 0.1" in lines[1]) == broken
    report = (tmp_path / "new" / "report.txt").read_text()
    assert all(line in report for line in lines[:3]) and ("its last words" in report) == broken


def test_what_a_check_may_raise_is_a_line(tmp_path):
    machine = Machine([], tmp_path)

    def lacks_a_file(machine):
        (tmp_path / "none").read_text()

    def finds_no_words(machine):
        re.search("accuracy", "nothing")[0]

    found = [checked("name", each, machine) for each in (passes, fails, cannot, lacks_a_file, finds_no_words)]
    assert [check.result for check in found] == [PASSED, FAILED, IMPOSSIBLE, FAILED, FAILED]
    assert "TypeError" in found[-1].figure


def test_a_process_that_fails_is_told_by_its_last_line(tmp_path):
    machine = Machine([], tmp_path)
    with pytest.raises(Failure, match="exit status 3: what is wrong"):
        machine.run(sys.executable, "-c", "import sys; print('what is wrong', file=sys.stderr); sys.exit(3)")
    assert any("what is wrong" in line for line in machine.log)


def test_settings_are_measured_one_by_one_and_the_faster_ones_recommended(monkeypatch, tmp_path):
    speeds = iter([100.0, 102.0, 110.0])
    seen = []

    def run(self, *command, **environ):
        seen.append(environ)
        return json.dumps({"images_per_second": next(speeds), "workers": 2})

    monkeypatch.setattr(Machine, "run", run)
    found = check_gpu.measured_exchanges(Machine(["0000:01:00.0", "0000:02:00.0"], tmp_path))
    assert seen == list(check_gpu.EXCHANGES.values())
    names = list(check_gpu.EXCHANGES)
    assert found == dict(zip(names, [100.0, 102.0, 110.0]))
    assert check_gpu.recommended(found).endswith(f"worth setting: {names[2]}")
    assert check_gpu.recommended({names[0]: 100.0, names[1]: 103.0}).endswith("worth setting: none")
    with pytest.raises(Failure, match="without a setting"):
        check_gpu.recommended({names[1]: 1.0})


def test_without_a_gpu_it_says_what_can_be_checked(monkeypatch, capsys):
    monkeypatch.setattr(check_gpu, "visible_gpus", list)
    monkeypatch.setattr(sys, "argv", ["check_gpu.py"])
    with pytest.raises(SystemExit) as ended:
        check_gpu.main()
    assert ended.value.code == 2 and "--cpu" in capsys.readouterr().err
