"""Flags: the usual names, checked one by one and against each other."""

import subprocess
import sys

import pytest

from training.flags import parse_arguments, training_parser


def parse(*argv):
    return parse_arguments(training_parser("test", datasets=["cifar10", "digits"]), argv)


def test_the_documented_command_is_understood():
    args = parse(
        *("--num-layers", "92", "--num-gpus", "1", "--workers", "2", "--batch-size", "64"),
        *("--epochs", "200", "--lr-steps", "80,120", "--mix-up", "1", "--alpha", "1.0"),
    )
    assert (args.num_layers, args.num_gpus, args.workers, args.batch_size, args.epochs) == (92, 1, 2, 64, 200)
    assert (args.lr_steps, args.mix_up, args.alpha, args.mix_up_off_epochs) == ([80, 120], 1, 1.0, 20)
    assert (args.dataset, args.lr, args.momentum, args.wd, args.optimizer) == ("cifar10", 0.1, 0.9, 1e-4, "nag")


def test_short_and_long_names_are_the_same_flag():
    args = parse("-j", "3", "-b", "8", "--learning-rate", "0.2", "--weight-decay", "0")
    assert (args.workers, args.batch_size, args.lr, args.wd) == (3, 8, 0.2, 0)


def test_a_seed_is_drawn_where_none_is_given():
    assert parse().seed != parse().seed
    assert parse("--seed", "7").seed == 7


BAD_FLAGS = [
    ["--num-layers", "many"],
    ["--epochs", "0"],
    ["--batch-size", "-1"],
    ["--lr", "nan"],
    ["--lr", "0"],
    ["--lr-steps", "120,80"],
    ["--lr-steps", "80,x"],
    ["--epsilon", "1"],
    ["--alpha", "0"],
    ["--mix-up", "2"],
    ["--dataset", "mnist"],
    ["--run-name", "../elsewhere"],
    ["--seed", "-1"],
    ["--warmup-epochs", "200"],
    ["--float16"],
    ["--batch", "8"],
]


@pytest.mark.parametrize("flags", BAD_FLAGS, ids=" ".join)
def test_a_bad_flag_ends_in_one_line_and_status_2(flags, capsys):
    with pytest.raises(SystemExit) as raised:
        parse(*flags)
    assert raised.value.code == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and flags[0] in message


def test_help_gives_every_flag_a_sentence_and_imports_nothing_heavy():
    code = (
        "import runpy, sys; sys.argv = ['cifar10_train.py', '--help']\n"
        "try: runpy.run_path('cifar10_train.py', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "assert not {'mxnet', 'numpy', 'nvidia'} & set(sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for group in ("data:", "network and devices:", "optimization:", "mixing:", "logs and saved parameters:"):
        assert group in shown
    parser = training_parser("test", datasets=["cifar10"])
    assert all(action.help for action in parser._actions)
    for action in parser._actions:
        assert action.option_strings[0] in shown
