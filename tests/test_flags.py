"""Flags: the usual names, checked one by one and against each other."""

import importlib
import subprocess
import sys

import numpy as np
import pytest

from base.errors import UserError
from data.datasets import photographs, small_images
from tests.conftest import ROOT
from training.flags import (
    ATTENTIONS,
    DEPTHS,
    LEARNINGS,
    MASKS,
    MAY_CHANGE,
    NOT_SETTINGS,
    OF_TRAINING,
    UNITS,
    add_evaluation_flags,
    parse_arguments,
    training_parser,
)
from training.run.checkpoint import Checkpoint, Checkpoints
from training.trained import DEFAULT, trained_params


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


def test_a_unit_has_its_own_name_and_its_network_s():
    from model.attention_net import attention_net_spec
    from model.units import units

    assert tuple(attention_net_spec) == DEPTHS
    assert {name: unit.network for name, unit in units.items()} == UNITS
    for unit, network in UNITS.items():
        assert {parse(flag, name).unit for flag in ("--unit", "--model") for name in (unit, network)} == {unit}


def test_every_data_set_is_opened_by_a_function_that_is_there():
    for path in (*small_images.values(), *photographs.values()):
        module, _, function = path.rpartition(".")
        assert callable(getattr(importlib.import_module(module), function))


BAD_FLAGS = [
    ["--num-layers", "many"],
    ["--num-layers", "1" * 400],
    ["--unit", "vgg"],
    ["--model", "vgg"],
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
    ["--cutout", "-1"],
    ["--cutout", "8", "--random-erasing", "0.5"],
    ["--mix-up-off-epochs", "8", "--epochs", "8", "--mix-up", "1"],
    ["--run-name", "auto"],
    ["--mix-up-off-epochs", "9", "--epochs", "8", "--cutmix", "1"],
    ["--random-erasing", "1.5"],
    ["--label-noise", "1"],
    ["--cutmix", "-1"],
    ["--ema", "1"],
    ["--clip-grad", "0"],
    ["--accumulate", "0"],
    ["--lr-per", "0"],
    ["--lr-factor", "2"],
    ["--lr", "1e39"],
    ["--lr", "1e-50"],
    ["--wd", "1e39"],
    ["--wd", "1e-320"],
    ["--momentum", "1e-320"],
    ["--epsilon", "1e-320"],
    ["--alpha", "1e-320"],
    ["--alpha", "1e308"],
    ["--lr-steps", "1e308"],
    ["--lr-steps", ",".join(map(str, range(1, 22)))],
    ["--epochs", "10000000000000000000000"],
    ["--workers", "100000"],
    ["--batch-size", "2147483647"],
    ["--modules", "100000,1,1"],
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
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for group in (
        "data:",
        "network and devices:",
        "optimization:",
        "learning rate:",
        "mixing:",
        "logs and saved parameters:",
    ):
        assert group in shown
    parser = training_parser("test", datasets=["cifar10"])
    assert all(action.help for action in parser._actions)
    for action in parser._actions:
        assert action.option_strings[0] in shown


def test_help_shows_the_defaults_that_hold():
    parser = training_parser("test", datasets=["cifar10"], lr_per=64, no_wd=True)
    shown = " ".join(parser.format_help().split())
    assert "scaled with their number (default: 64)" in shown, "and not what it is without"
    assert "CutMix (default: a tenth of --epochs)" in shown
    assert "GPUs to train on; 0 is the CPU (default: 0)" in shown
    assert "gammas and betas (default: on)" in shown
    assert "not --no-wd (default: on)" not in shown


def test_help_shows_the_defaults_of_a_recipe():
    command = [sys.executable, "cifar10_train.py", "--recipe", "best", "--help"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    shown = " ".join(shown.split())
    assert "passes over the training images (default: 220)" in shown
    assert "probability P; 0 is none (default: 0.5)" in shown
    assert "gammas and betas (default: on)" in shown


def test_flags_without_effect_are_named_once(capsys, monkeypatch):
    parse("--alpha", "0.2", "--lr-mode", "cosine", "--lr-steps", "5", "--mix-up-off-epochs", "3")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" does nothing ")[0] for line in lines] == ["--mix-up-off-epochs", "--alpha", "--lr-steps"]
    parse("--alpha", "0.2", "--mix-up", "1", "--lr-steps", "5", "--mix-up-off-epochs", "3")
    parse("--alpha", "1.0", "--mix-up", "0")
    monkeypatch.setenv("HOROVOD_RANK", "1")
    parse("--alpha", "0.2")
    assert capsys.readouterr().err == ""


def parse_with_model(*argv):
    """The flags where the script has a few of its own, as imagenet_train.py has."""
    parser = training_parser("test", datasets=["cifar10", "digits"])
    parser.add_argument("--eval-only", action="store_true")
    parser.add_argument("--params")
    return parse_arguments(parser, argv)


@pytest.fixture
def saved(tmp_path):
    """Makes a run with a checkpoint of given settings; returns the flags that go on with it."""

    def save(settings):
        position = dict.fromkeys(("steps", "epoch", "step", "skipped", "best_epoch"), 0)
        position.update(seconds=0.0, best_accuracy=0.0, totals=[0, 0.0, 0.0])
        facts = {"settings": settings, "position": position, "updates": 0, "sizes": {}}
        folder = tmp_path / "params" / "run"
        folder.mkdir(parents=True, exist_ok=True)
        Checkpoints(folder).save({"weight": np.ones(1, np.float32)}, facts, None)
        return "--log-dir", str(tmp_path), "--resume", "run"

    return save


def test_what_a_run_saved_and_what_is_given_come_before_the_defaults(saved):
    own = parse("--lr", "0.3", "--lr-steps", "1,2.5", "--memory-saving", "--workers", "7", "--seed", "4").settings
    args = parse(*saved(own), "--workers", "3", "--no-memory-saving", "--lr", "0.3")
    assert args.settings == {**own, "workers": 3, "memory_saving": False}


def test_flags_that_an_old_checkpoint_does_not_know_have_their_defaults(saved):
    assert parse(*saved({"lr": 0.3, "seed": 5})).settings == parse("--lr", "0.3", "--seed", "5").settings


@pytest.mark.parametrize("resume", ["run", "auto"])
@pytest.mark.parametrize("settings", [{"unit": "resnext"}, {"model": "attentionnext"}], ids=str)
def test_the_unit_of_an_old_checkpoint_is_known_by_either_name(saved, settings, resume, capsys):
    (*flags, _) = saved({**settings, "seed": 3})
    for given in (["--unit", "resnext"], ["--model", "attentionnext"]):
        args = parse(*flags, resume, *given)
        assert (args.unit, args.seed) == ("resnext", 3) and "model" not in args.settings
        args.resumed = None  # lets go of the run
    with pytest.raises(SystemExit):
        parse(*flags, "run", "--unit", "se")
    assert "--unit contradicts" in capsys.readouterr().err


# What a run trains, and how: two command lines that differ by one flag.
LASTING = [
    ("--dataset", "digits"), ("--limit", "8"), ("--cutout", "4"), ("--random-erasing", "0.5"), ("--label-noise", "0.5"),
    ("--num-layers", "92"), ("--unit", "se"), ("--modules", "2,2,2"), ("--attention", "channel"),
    ("--learning", "naive"), ("--mask", "local"), ("--init", "here.params"), ("--batch-size", "8"),
    ("--optimizer", "sgd"), ("--accumulate", "2"), ("--lr", "0.3"), ("--lr-per", "64"), ("--momentum", "0.5"),
    ("--wd", "0.5"), ("--lr-mode", "cosine"), ("--lr-steps", "1,2"), ("--lr-factor", "0.5"), ("--warmup-epochs", "1"),
    ("--no-wd",), ("--last-gamma",), ("--clip-grad", "1"), ("--ema", "0.9"), ("--tta",), ("--seed", "2"),
    ("--mix-up", "1"), ("--alpha", "0.5"), ("--cutmix", "1"), ("--epsilon", "0.1"), ("--gradient-compression", "fp16"),
    ("--float16",), ("--freeze", "stem"),
]  # fmt: skip


@pytest.mark.parametrize("flag", LASTING, ids=" ".join)
def test_a_run_does_not_go_on_with_other_settings(saved, flag, capsys):
    flags = saved(parse("--seed", "1").settings)
    with pytest.raises(SystemExit):
        parse(*flags, *flag)
    message = capsys.readouterr().err
    assert f"{flag[0]} contradicts" in message and message.count("\n") == 1


def test_a_flag_lasts_or_may_change():
    flags = vars(training_parser("test", datasets=["cifar10"]).parse_args([]))
    lasting = {flag[2:].replace("-", "_") for flag, *_ in LASTING}
    assert lasting == flags.keys() - {*MAY_CHANGE, *NOT_SETTINGS}


def test_a_run_on_other_data_is_not_the_newest_of_these_settings(saved, capsys):
    own = parse("--seed", "1", "--data-dir", "flowers").settings
    (*flags, _) = saved(own)
    assert parse(*flags, "auto", "--data-dir", "birds").resumed is None
    assert "has these settings: this is a new one" in capsys.readouterr().out
    assert parse(*flags, "auto", "--data-dir", "./flowers/").resumed is not None


def test_what_no_run_could_go_on_with_is_refused_when_it_begins(capsys):
    with pytest.raises(SystemExit):
        parse("--data-dir", "a\tb")
    assert "--data-dir" in capsys.readouterr().err


@pytest.mark.parametrize("updates", [-11, 1.5, True, None, 2**60])
def test_a_checkpoint_has_a_number_of_updates(saved, updates, tmp_path):
    flags = saved(parse("--seed", "1").settings)
    (path,) = Checkpoints(tmp_path / "params" / "run").paths()
    checkpoint = Checkpoint(path)
    facts = {**checkpoint.facts, "updates": updates}
    Checkpoints(tmp_path / "params" / "run").save({"weight": np.ones(1, np.float32)}, facts, None)
    with pytest.raises(UserError, match="says nothing one could go on from"):
        parse(*flags)


def test_another_recipe_than_the_runs_is_a_contradiction(saved, monkeypatch, capsys):
    import cifar10_train

    flags = saved(parse("--seed", "1").settings | {"recipe": "original"})
    monkeypatch.setattr(sys, "argv", ["cifar10_train.py", "--recipe", "best"])
    parser = training_parser("", datasets=["cifar10"], recipes=cifar10_train.RECIPES)
    with pytest.raises(SystemExit):
        parse_arguments(parser, [*flags, "--recipe", "best"])
    assert "--recipe contradicts" in capsys.readouterr().err


STRANGE = [
    {"epochs": "3"}, {"epochs": 3.0}, {"epochs": True}, {"epochs": None}, {"epochs": [3]}, {"epochs": 10**400},
    {"lr": float("nan")}, {"lr": 0}, {"lr": 10**400}, {"lr_steps": "1,2"}, {"lr_steps": [2, 1]}, {"lr_steps": [[1]]},
    {"lr_steps": 1}, {"float16": 0}, {"float16": "yes"}, {"float16": None}, {"no_wd": 1}, {"optimizer": "adam"},
    {"optimizer": ["nag"]}, {"mix_up": True}, {"mix_up": 2}, {"dataset": "mnist"}, {"dataset": None}, {"data_dir": 5},
    {"data_dir": {}}, {"data_dir": "a\0b"}, {"data_dir": "a\nb"}, {"data_dir": "\ud800"}, {"unit": "vgg"},
    {"unit": "attentionnext"},
    {"unit": ["se"]}, {"model": ["attention"]}, {"model": None}, {"seed": -1}, {"help": True}, {"a\nb": 1},
    {"eval_only": True}, {"params": "/etc/passwd"}, {"resume": "auto"}, {"run_name": "other"}, {"log_dir": "/tmp"},
    None, [], ["epochs"], [["epochs", 3]], "epochs", 5,
]  # fmt: skip


@pytest.mark.parametrize("settings", STRANGE, ids=lambda settings: ascii(settings)[:40])
def test_settings_that_no_command_line_gives_are_refused_in_one_line(saved, settings):
    with pytest.raises(UserError, match="checkpoint-000001 was not trained by this script: ") as raised:
        parse_with_model(*saved(settings))
    assert str(raised.value).isprintable() and len(str(raised.value)) < 400


def test_the_flag_that_a_checkpoint_cannot_have_is_named(saved):
    with pytest.raises(UserError, match="--lr-steps cannot be '1,2'"):
        parse(*saved({"epochs": 3, "lr_steps": "1,2"}))
    with pytest.raises(UserError, match="there is no flag '--crop-ratio'"):
        parse(*saved({"epochs": 3, "crop_ratio": 0.5}))


def test_what_an_old_checkpoint_says_of_evaluation_is_accepted_where_it_is_nothing(saved):
    args = parse_with_model(*saved({"eval_only": False, "params": None, "no_wd": True}))
    assert (args.eval_only, args.params, args.no_wd) == (False, None, True)
    assert not {"eval_only", "params"} & set(args.settings)


def test_a_data_set_is_written_where_the_user_says_or_by_default_and_not_where_a_checkpoint_says(saved):
    for given, expected in (([], False), (["--data-dir", "/etc"], True)):
        args = parse(*saved({"data_dir": "/etc"}), *given)
        assert (args.data_dir, args.may_write_data) == ("/etc", expected)
        args.resumed = None  # lets go of the run
    assert parse().may_write_data and parse(*saved({})).may_write_data


def test_a_run_is_not_gone_on_with_to_evaluate(saved, capsys):
    with pytest.raises(SystemExit) as raised:
        parse_with_model(*saved({}), "--eval-only")
    assert raised.value.code == 2 and "--eval-only contradicts" in capsys.readouterr().err


def test_recipes_are_for_the_images_a_step_that_their_rate_is_for(monkeypatch):
    import imagenet_train

    monkeypatch.setattr(sys, "argv", ["imagenet_train.py"])
    paper = parse_arguments(imagenet_train.flags(), [])
    assert (paper.batch_size, paper.lr, paper.epochs, paper.lr_steps) == (32, 0.1, 106, [40, 80, 100])
    for iterations, epoch in zip((200e3, 400e3, 500e3, 530e3), (*paper.lr_steps, paper.epochs)):
        assert round(iterations * 8 * paper.batch_size / 1281167) == epoch
    monkeypatch.setattr(sys, "argv", ["imagenet_train.py", "--recipe", "tricks"])
    tricks = parse_arguments(imagenet_train.flags(), ["--recipe", "tricks"])
    assert (tricks.mix_up, tricks.epochs, tricks.lr) == (1, 200, 0.1 * tricks.batch_size / 256)


def test_recipes_of_the_small_images_are_the_published_ones(monkeypatch):
    import cifar10_train

    def parsed(*flags):
        monkeypatch.setattr(sys, "argv", ["cifar10_train.py", *flags])
        parser = training_parser("", datasets=["cifar10"], recipes=cifar10_train.RECIPES)
        return parse_arguments(parser, list(flags))

    original, tricks, best = (parsed("--recipe", name) for name in ("original", "tricks", "best"))
    assert {name: value for name, value in original.settings.items() if name != "seed"} == {
        name: value for name, value in parsed().settings.items() if name != "seed"
    }
    assert (original.lr, original.lr_steps, original.mix_up, original.no_wd) == (0.1, [80, 120], 0, False)
    assert tricks.lr * 8 * tricks.batch_size / tricks.lr_per == 0.2  # the published run's, as it took effect
    assert tricks.wd == 0.0008
    assert (tricks.mix_up, tricks.warmup_epochs, tricks.lr_mode) == (1, 10, "cosine")
    assert best.lr * 256 / best.lr_per == 0.4
    assert (best.random_erasing, best.no_wd, best.epochs - best.mix_up_off_epochs) == (0.5, True, 200)
    erasing = {value: parsed("--recipe", "best", "--cutout", value) for value in ("0", "16")}
    assert [(args.cutout, args.random_erasing) for args in erasing.values()] == [(0, 0.5), (16, None)]
    assert parsed("--recipe", "best", "--cutout", "16", "--random-erasing", "0").cutout == 16
    short = parsed("--recipe", "best", "--epochs", "10")
    assert (short.epochs, short.mix_up_off_epochs, best.settings["recipe"]) == (10, 1, "best")


def test_a_recipe_with_another_flag_finds_its_own_run(saved, monkeypatch):
    import cifar10_train

    def parsed(*flags):
        monkeypatch.setattr(sys, "argv", ["cifar10_train.py", *flags])
        return parse_arguments(training_parser("", datasets=["cifar10"], recipes=cifar10_train.RECIPES), list(flags))

    flags = ("--recipe", "best", "--cutout", "16", "--seed", "1")
    place = saved(parsed(*flags).settings)
    found = parsed(*flags, *place[:2], "--resume", "auto")
    assert found.resumed and (found.cutout, found.random_erasing) == (16, None)


def test_the_variants_are_those_of_the_attention_modules():
    from model.attention import PAPER, attentions, learnings, masks

    assert (tuple(attentions), tuple(learnings), tuple(masks)) == (ATTENTIONS, LEARNINGS, MASKS)
    flags = parse_arguments(training_parser("", datasets=["digits"]), [])
    assert (flags.attention, flags.learning, flags.mask) == PAPER


@pytest.mark.parametrize(
    "flags",
    [
        ("--modules", "2,2"),
        ("--mask", "none", "--learning", "naive"),
        ("--model", "resnet", "--attention", "spatial"),
        ("--model", "resnet", "--modules", "1,1,1"),
        ("--model", "resnet", "--mask", "local"),
        ("--model", "resnet", "--viz-period", "1"),
        ("--mask", "none", "--viz-period", "1"),
    ],
)
def test_variants_that_contradict_each_other_are_refused(flags, capsys):
    with pytest.raises(SystemExit) as ended:
        parse_arguments(training_parser("", datasets=["digits"]), list(flags))
    assert ended.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_the_repositorys_network_goes_by_its_name():
    parser = training_parser("test", datasets=["cifar10"])
    add_evaluation_flags(parser)
    of_photographs = {"colour_jitter", "lighting"}
    known = {action.dest for action in parser._actions}
    assert known >= OF_TRAINING - of_photographs
    assert known - OF_TRAINING == {
        *("help", "dataset", "data_dir", "workers", "limit", "num_layers", "unit", "modules", "attention", "learning"),
        *("mask", "num_gpus", "float16", "bfloat16", "sync", "sync_timeout", "batch_size", "tta", "seed", "log_dir"),
        *("log_interval", "eval_only", "params", "out"),
    }, "what an evaluation heeds"
    args = parse_arguments(parser, ["--eval-only", "--params", DEFAULT, "--init", DEFAULT])
    assert args.params == args.init == str(trained_params(DEFAULT))
