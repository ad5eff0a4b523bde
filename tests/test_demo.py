"""scripts/demo.sh trains, draws, and names what it leaves."""

import subprocess

import pytest

from tests.conftest import ROOT
from training.flags import parse_arguments, training_parser

LEFT = [
    "log/text/{}-accuracy.png", "log/text/{}-loss.png", "log/params/{}/best.params",
    "log/pictures/{}/overview-masks.png", "--logdir=./log/board/{}",
]  # fmt: skip


@pytest.fixture
def demo(tmp_path):
    """Makes a demo.sh whose set-up does nothing and whose Python notes its arguments; returns how to run it."""

    def make(pays):
        note_calls = f'#!/bin/sh\n[ "$1" = -c ] && exit {0 if pays else 1}\nprintf "%s|" "$@" >>calls\necho >>calls\n'
        for name, text in {
            "scripts/demo.sh": (ROOT / "scripts" / "demo.sh").read_text(),
            "scripts/setup.sh": "#!/bin/sh\n",
            ".venv/bin/python": note_calls,
        }.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
            (tmp_path / name).chmod(0o755)
        command = ["bash", tmp_path / "scripts/demo.sh"]
        return lambda *flags: subprocess.run([*command, *flags], capture_output=True, text=True)

    return make


@pytest.mark.parametrize(
    "pays, flags, chosen",
    [(True, [], True), (False, [], False), (True, ["--num-gpus", "1"], False), (True, ["--no-bfloat16"], True)],
)
def test_the_demo_trains_draws_and_names_what_it_leaves(demo, tmp_path, pays, flags, chosen):
    done = demo(pays)(*flags)
    assert (done.returncode, done.stderr) == (0, "")
    training, curves, masks = (line.split("|")[:-1] for line in (tmp_path / "calls").read_text().splitlines())
    assert training[0] == "cifar10_train.py" and training[len(training) - len(flags) :] == flags
    assert ("--bfloat16" in training) == chosen
    args = parse_arguments(training_parser("", datasets=["digits"]), training[1:])
    assert args.bfloat16 == (chosen and not flags)
    assert curves == ["-m", "scripts.plot_curves", f"log/text/{args.run_name}.csv"]
    assert masks[1:4] == ["scripts.visualize_attention", "--params", f"log/params/{args.run_name}/best.params"]
    assert all(path.format(args.run_name) in done.stdout for path in LEFT)


@pytest.mark.parametrize("flags", [["--data-dir", "some where"], ["--epochs", "1", "--data-dir=some where"]])
def test_the_pictures_are_of_the_same_folder(demo, tmp_path, flags):
    assert demo(False)(*flags).returncode == 0
    masks = (tmp_path / "calls").read_text().splitlines()[-1]
    assert masks.endswith("|".join(["", *flags[-2:], ""]) if len(flags) == 2 else f"|{flags[-1]}|")


@pytest.mark.parametrize("flag", ["--log-dir=x", "--run-name", "--resume"])
def test_flags_that_move_the_run_are_refused_before_anything_is_done(demo, tmp_path, flag):
    done = demo(False)("--epochs", "1", flag, "x")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "is not for the demo" in done.stderr
    assert not (tmp_path / "calls").exists()
