"""A stopped training goes on as if it had never stopped, to the bit, or says in one line why it does not."""

import dataclasses
import errno
import fcntl
import gc
import json
import os
import shutil
import signal
from types import SimpleNamespace

import mxnet as mx
import numpy as np
import pytest
from mxnet.gluon import nn

from base.errors import Diverged, UserError
from base.runtime import thread_count
from data.loader import LoaderOptions, ShardedLoader
from data.mixup import TargetTransform
from scripts.torture import figures
from training.distributed.process_group import SingleProcess
from training.flags import parse_arguments, training_parser
from training.learner import Learner, LearnerOptions
from training.loop import fit
from training.loss_scale import FIRST
from training.network_file import describe
from training.optimizers import optimizer_options
from training.run.checkpoint import Checkpoint, Checkpoints
from training.run.files import LOCK, RunFiles, new_run
from training.run.progress import TrainingProgress
from training.run.resume import find_newest
from training.run.run import Run, RunOptions, what_changes
from training.schedule import Falls, learning_rates
from training.state import TrainingState

FLAGS = ("--epochs", 3, "--mix-up", 1, "--lr", 0.05, "--lr-mode", "cosine", "--epsilon", 0.1, "--seed", 1)
STEPS = 5  # an epoch on one device


def small_net(classes):
    """A residual unit, dropout and a classifier, uninitialized."""
    from model.units import PreActivationBottleneck

    net = nn.HybridSequential()
    net.add(PreActivationBottleneck(8, 3), nn.GlobalAvgPool2D(), nn.Dropout(0.5), nn.Dense(classes, in_units=8))
    return net


def train(folder, digits, *flags, devices=1, share=None, interrupt=None, limit=40):
    """Train the small network; ``interrupt`` is called with (epoch, step) before every step."""
    gc.collect()  # a refused run is let go of with the traceback that held it
    parser = training_parser("test", datasets=["digits"], batch_size=8)
    args = parse_arguments(parser, [str(flag) for flag in ("--log-dir", folder, *flags)])
    group = SingleProcess([mx.cpu(device) for device in range(devices)])
    share = share or args.batch_size // devices  # images for each device
    loaders = [
        ShardedLoader(
            digits, split, LoaderOptions(size, seed=args.seed, limit=limit), group.devices, training=split == "train"
        )
        for split, size in (("train", share), ("test", 8))
    ]
    mixup_epochs = args.mix_up * (args.epochs - args.mix_up_off_epochs)
    transform = TargetTransform(10, args.alpha, mixup_epochs=mixup_epochs, epsilon=0.1, seed=1)

    names = {field.name for field in dataclasses.fields(RunOptions)} - {"stem", "network", "origin"}
    options = {name: getattr(args, name) for name in names}
    options |= {"stem": "digits", "network": describe(digits, "cifar", 56, "bottleneck")}
    steps = loaders[0].steps
    with Run(RunOptions(**options), group, steps, args.settings, args.resumed) as run:
        if run.finished:
            print(run.finished)
            return
        learner = Learner(
            lambda: small_net(10), group, optimizer_options(args), args.seed, LearnerOptions(ema=args.ema)
        )
        rates = learning_rates(args.lr_mode, args.lr, args.epochs, steps, args.warmup_epochs, Falls(args.lr_steps))
        step = learner.step

        def interrupted_step(examples, rate, epoch, number, **options):
            if interrupt is not None:
                interrupt(epoch, number)
            return step(examples, rate, epoch, number, **options)

        learner.step = interrupted_step
        fit(learner, run, loaders, transform, rates, args.epochs)


def stop_at(*moments, number=signal.SIGTERM):
    """An interrupt that sends a signal at (epoch, step), each once."""
    left = list(moments)

    def interrupt(epoch, step):
        if (epoch, step) in left:
            left.remove((epoch, step))
            os.kill(os.getpid(), number)

    return interrupt


class Killed(Exception):
    """Stands for SIGKILL: nothing in the code catches it."""


def kill_at(*moment):
    def interrupt(*now):
        if now == moment:
            raise Killed

    return interrupt


def results(folder, run):
    """What must not depend on where a run was stopped: parameters, and all of the CSV but its timings."""
    parameters = {}
    for name in ("last", "best"):
        loaded = mx.nd.load(str(folder / "params" / run / f"{name}.params"))
        parameters[name] = {key: value.asnumpy().tobytes() for key, value in loaded.items()}
    rows = (folder / "text" / f"{run}.csv").read_text().splitlines()
    return parameters, [row.split(",")[:6] for row in rows]


@pytest.fixture(scope="module")
def undisturbed(new_folder, digits):
    """The results of trainings that were not disturbed, {number of devices: results}."""
    folder = new_folder("undisturbed")
    for devices in (1, 2):
        train(folder, digits, *FLAGS, "--run-name", f"run{devices}", devices=devices)
    return {devices: results(folder, f"run{devices}") for devices in (1, 2)}


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("moment", [(0, 0), (0, 3), (1, 4), (2, 0)])
def test_a_stopped_run_ends_as_one_that_was_not(tmp_path, digits, undisturbed, devices, moment):
    with pytest.raises(SystemExit) as raised:
        train(tmp_path, digits, *FLAGS, "--run-name", "run", devices=devices, interrupt=stop_at(moment))
    assert raised.value.code == 143
    train(tmp_path, digits, "--resume", "run", devices=devices)
    assert results(tmp_path, "run") == undisturbed[devices]


def test_the_average_of_the_weights_goes_on_to_the_bit(tmp_path, digits):
    def averages(folder):
        loaded = mx.nd.load(str(folder / "params" / "run" / "last-ema.params"))
        rows = (folder / "text" / "run.csv").read_text().splitlines()
        columns = [rows[0].split(",").index(name) for name in ("val_ema_loss", "val_ema_accuracy")]
        figures = [[row.split(",")[column] for column in columns] for row in rows]
        return {name: value.asnumpy().tobytes() for name, value in loaded.items()}, figures

    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    flags = (*FLAGS, "--run-name", "run", "--ema", 0.9)
    train(whole, digits, *flags, devices=2)
    with pytest.raises(SystemExit):
        train(stopped, digits, *flags, devices=2, interrupt=stop_at((1, 3)))
    train(stopped, digits, "--resume", "run", devices=2)
    assert averages(stopped) == averages(whole) and results(stopped, "run") == results(whole, "run")


def test_a_run_stopped_in_its_validation_does_not_train_again(tmp_path, digits, undisturbed, monkeypatch):
    def evaluate(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return whole(*arguments)

    whole = Learner.evaluate
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as raised:
        patch.setattr(Learner, "evaluate", evaluate)
        train(tmp_path, digits, *FLAGS, "--run-name", "run", devices=2)
    assert raised.value.code == 130
    assert f"stopped at epoch 1/3, step {STEPS}/{STEPS}; go on with: " in (tmp_path / "text" / "run.log").read_text()
    with pytest.raises(Killed):  # the next thing it trains on is the second epoch
        train(tmp_path, digits, "--resume", "run", devices=2, interrupt=kill_at(1, 0))
    train(tmp_path, digits, "--resume", "run", devices=2)
    assert results(tmp_path, "run") == undisturbed[2]


@pytest.mark.parametrize("minutes", [0, 10])
def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp_path, digits, undisturbed, minutes):
    flags = (*FLAGS, "--checkpoint-minutes", minutes)
    with pytest.raises(Killed):
        train(tmp_path, digits, *flags, "--run-name", "run", interrupt=kill_at(1, 2))
    with pytest.raises(Killed):
        train(tmp_path, digits, "--resume", "run", interrupt=kill_at(2, 1))
    train(tmp_path, digits, "--resume", "auto", *flags)
    assert results(tmp_path, "run") == undisturbed[1]
    log = (tmp_path / "text" / "run.log").read_text()
    assert [log.count(f"epoch {number}/3  train loss") for number in (1, 2, 3)] == [1, 1, 1]
    resumed = "epoch 2/3, step 2/5" if minutes == 0 else "epoch 2/3, step 0/5"
    assert f"resumed at {resumed}" in log


def test_a_kill_between_the_rows_and_the_checkpoint_doubles_none(tmp_path, digits, undisturbed, monkeypatch):
    def killed(progress, accuracy):
        if progress.epoch == 1:
            raise Killed
        whole(progress, accuracy)

    whole = TrainingProgress.finish_epoch
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(TrainingProgress, "finish_epoch", killed)
        train(tmp_path, digits, *FLAGS, "--run-name", "run")
    train(tmp_path, digits, "--resume", "run")
    assert results(tmp_path, "run") == undisturbed[1]
    log = (tmp_path / "text" / "run.log").read_text()
    assert [log.count(f"epoch {number}/3  train loss") for number in (1, 2, 3)] == [1, 1, 1]
    events = sorted((tmp_path / "board" / "run").iterdir())
    written = [(step, tag) for path in events for step, tag, _ in figures(path)]
    assert len(written) == len(set(written))
    assert [step for step, tag in written if tag == "loss/train"] == [1, 2, 3]


def test_a_kill_between_the_checkpoint_and_the_parameters_files_loses_none(tmp_path, digits, undisturbed, monkeypatch):
    from training.run.exports import Exports

    def killed(*_):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Exports, "save", killed)
        train(tmp_path, digits, *FLAGS, "--run-name", "run", "--epochs", 1, "--mix-up-off-epochs", 0)
    assert not (tmp_path / "params" / "run" / "best.params").exists()
    train(tmp_path, digits, "--resume", "run")
    assert (tmp_path / "params" / "run" / "best.params").exists()
    assert "Finished:" in (tmp_path / "text" / "run.log").read_text()


def test_more_epochs_move_what_follows_from_their_number(tmp_path, digits):
    flags = [flag for flag in FLAGS if flag != "cosine"]
    flags[flags.index("--lr-mode")] = "--lr-steps=2"
    train(tmp_path, digits, *flags, "--run-name", "straight", "--epochs", 2)
    train(tmp_path, digits, *flags, "--run-name", "run", "--epochs", 1)
    train(tmp_path, digits, "--resume", "run", "--epochs", 2)
    assert results(tmp_path, "run") == results(tmp_path, "straight")


def snapshot(folder):
    """What is in the files of a log folder, and when they were written; but for the lock of who holds the run."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != LOCK]
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def test_a_finished_run_says_so_again_and_writes_nothing(tmp_path, digits, capsys):
    train(tmp_path, digits, *FLAGS, "--epochs", 1, "--run-name", "run")
    said = capsys.readouterr().out.splitlines()[-1]
    before = snapshot(tmp_path)
    train(tmp_path, digits, "--resume", "run")
    assert capsys.readouterr().out.splitlines() == [said] and said.startswith("Finished: ")
    assert snapshot(tmp_path) == before


@pytest.fixture(scope="module")
def stopped(new_folder, digits):
    """The log folder of a run that was stopped in its second epoch."""
    folder = new_folder("stopped")
    with pytest.raises(SystemExit):
        train(folder, digits, *FLAGS, "--run-name", "run", interrupt=stop_at((1, 2)))
    return folder


def test_flags_that_are_not_given_are_the_run_s_own(tmp_path, digits):
    own = (
        "--momentum",
        0,
        "--wd",
        0,
        "--seed",
        0,
        "--save-period",
        0,
        "--checkpoint-minutes",
        0,
        "--lr-steps",
        "1,2.5",
    )
    with pytest.raises(SystemExit):
        train(tmp_path, digits, *own, "--epochs", 4, "--run-name", "run", interrupt=stop_at((0, 2)))
    parser = training_parser("test", datasets=["digits"], batch_size=4, lr=0.7)
    args = parse_arguments(parser, ["--resume", "run", "--log-dir", str(tmp_path), "--epochs", "5", "--workers", "1"])
    expected = {"momentum": 0, "wd": 0, "seed": 0, "save_period": 0, "checkpoint_minutes": 0, "lr_steps": [1, 2.5]}
    expected.update(batch_size=8, lr=0.1, epochs=5, workers=1, float16=False, mix_up_off_epochs=0)
    assert {name: getattr(args, name) for name in expected} == expected


@pytest.mark.parametrize(
    "flags",
    [
        ("--num-layers", 92),
        ("--batch-size", 16),
        ("--lr", 0.1),
        ("--seed", 2),
        ("--limit", 39),
        ("--optimizer", "sgd"),
        ("--run-name", "other"),
    ],
    ids=str,
)
def test_flags_that_contradict_the_checkpoint_are_refused_by_name(stopped, digits, flags, capsys):
    before = snapshot(stopped)
    with pytest.raises(SystemExit) as raised:
        train(stopped, digits, "--resume", "run", *flags)
    assert raised.value.code == 2
    message = capsys.readouterr().err
    assert flags[0] in message and message.count("\n") == 1
    assert snapshot(stopped) == before


def refused(folder, digits, *flags, match, **options):
    before = snapshot(folder)
    with pytest.raises(UserError, match=match) as raised:
        train(folder, digits, *flags, **options)
    assert "\n" not in str(raised.value)
    assert snapshot(folder) == before


def test_what_does_not_fit_the_checkpoint_is_refused_by_name(stopped, digits, tmp_path):
    refused(stopped, digits, "--resume", "other", match="there is no run .*other")
    refused(stopped, digits, "--resume", f"{stopped}/text/run", match="is not LOG_DIR/params/RUN")
    refused(stopped, digits, "--resume", "run", limit=39, match="'images': 40.*'images': 39")
    refused(stopped, digits, "--resume", "run", "--epochs", 1, "--warmup-epochs", 0, match="--epochs 1: .* epoch 2")
    (tmp_path / "params" / "empty").mkdir(parents=True)
    refused(tmp_path, digits, "--resume", "empty", match="no checkpoint")


def test_another_network_is_refused_by_the_name_of_an_array(stopped, digits, monkeypatch):
    whole = small_net
    monkeypatch.setitem(globals(), "small_net", lambda classes: whole(classes + 1))
    refused(stopped, digits, "--resume", "run", match=r"weight is float32 \(10, 8\) .* \(11, 8\)")


def test_a_run_is_written_by_one_process_at_a_time(stopped, digits):
    lock = stopped / "params" / "run" / LOCK
    with RunFiles(stopped, "run"):
        refused(stopped, digits, "--resume", "run", match="is being written by another process")
        with pytest.raises(BlockingIOError), open(lock, "r+b") as file:  # as a network file system must have it
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    assert not lock.exists()


def test_the_lock_of_a_process_that_has_ended_since_is_nobodys(stopped, monkeypatch):
    """It is removed between the opening and the locking: another one is made."""
    whole, lock = fcntl.flock, stopped / "params" / "run" / LOCK
    taken = []

    def slow(descriptor, operation):
        if not taken:
            lock.unlink()
        taken.append(os.fstat(descriptor).st_ino)
        whole(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", slow)
    with RunFiles(stopped, "run"):
        assert len(taken) == 2 and lock.stat().st_ino == taken[1]


def test_the_lock_of_a_run_that_was_begun_anew_is_left(tmp_path):
    with new_run(tmp_path, "run", "digits") as first:
        shutil.rmtree(first.params)
        first.params.mkdir()
        with RunFiles(tmp_path, "run") as second:
            first.__exit__()
            assert (second.params / LOCK).exists()


@pytest.mark.parametrize("number, expected", [(errno.ENOLCK, "cannot lock .*No locks available"), (errno.EROFS, None)])
def test_a_file_system_without_locks_is_said_and_one_to_read_only_needs_none(tmp_path, monkeypatch, number, expected):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    new_run(tmp_path, "run", "digits").__exit__()
    if expected:
        monkeypatch.setattr(fcntl, "flock", refuse)
        with pytest.raises(UserError, match=expected):
            RunFiles(tmp_path, "run")
    else:
        monkeypatch.setattr("training.run.files.os.open", refuse)
        RunFiles(tmp_path, "run").__exit__()


def test_runs_that_begin_in_one_minute_have_names_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr("time.strftime", lambda _: "202611261200")
    names = [new_run(tmp_path, None, "digits").name for _ in range(3)]
    assert names == ["digits_202611261200", "digits_202611261200_2", "digits_202611261200_3"]


def test_a_run_that_another_process_removes_meanwhile_is_said(tmp_path):
    with pytest.raises(UserError, match="the run gone .* was removed by another process"):
        RunFiles(tmp_path, "gone")


def test_a_path_is_a_run_or_one_of_its_checkpoints(stopped, digits, tmp_path, undisturbed):
    for text in ("params/run", "params/run/", "params/run/{}"):
        folder = tmp_path / text.replace("/", "_")
        shutil.copytree(stopped, folder)
        older = Checkpoints(folder / "params" / "run").paths()[1]
        train(folder, digits, "--resume", folder / text.format(older.name))
        assert results(folder, "run") == undisturbed[1]


def test_auto_takes_the_newest_run_of_the_same_settings(stopped, digits, tmp_path, capsys):
    folder = tmp_path / "log"
    shutil.copytree(stopped, folder)
    flags = [flag for flag in FLAGS if flag != "--seed"][:-1]  # the run's own, then
    train(folder, digits, "--resume", "auto", *flags)
    assert "resumed at epoch 2/3, step 3/5" in capsys.readouterr().out
    train(folder, digits, "--resume", "auto", *flags, "--wd", 0)
    assert f"no run in {folder} has these settings" in capsys.readouterr().out
    assert len(list((folder / "params").iterdir())) == 2


def test_the_newest_of_several_runs_is_found(stopped, tmp_path):
    for name, second in {"a": 1, "b": 3, "c": 2}.items():
        shutil.copytree(stopped / "params" / "run", tmp_path / "params" / name)
        for path in Checkpoints(tmp_path / "params" / name).paths():
            os.utime(path, (second, second))
    assert find_newest(tmp_path, lambda checkpoint: True) == "b"
    assert find_newest(tmp_path, lambda checkpoint: checkpoint.path.parent.name != "b") == "c"


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(stopped, digits, tmp_path, undisturbed, capsys):
    folder = tmp_path / "log"
    shutil.copytree(stopped, folder)
    newest = Checkpoints(folder / "params" / "run").paths()[0]
    (newest / "arrays.bin").write_bytes(b"")
    train(folder, digits, "--resume", "run")
    assert f"{newest} is damaged" in capsys.readouterr().out
    assert results(folder, "run") == undisturbed[1]


def test_another_number_of_devices_goes_on_at_the_same_share_of_the_epoch(stopped, digits, tmp_path, capsys):
    folder = tmp_path / "log"
    shutil.copytree(stopped, folder)
    train(folder, digits, "--resume", "run", devices=2, share=8)  # twice the images a step
    assert "resumed at epoch 2/3, step 1/2 (step 3/5 of then)" in capsys.readouterr().out
    assert len((folder / "text" / "run.csv").read_text().splitlines()) == 4


def test_nothing_in_a_checkpoint_is_a_path_that_is_written(stopped, digits, tmp_path):
    folder = tmp_path / "log"
    shutil.copytree(stopped, folder)
    (tmp_path / "victim").write_text("untouched")
    (path, *_) = Checkpoints(folder / "params" / "run").paths()
    checkpoint = Checkpoint(path)
    sizes = {**checkpoint.facts["sizes"], "../../../victim": 0, str(tmp_path / "victim"): 0}
    Checkpoints(folder / "params" / "run").save(checkpoint.arrays(), {**checkpoint.facts, "sizes": sizes}, path)
    train(folder, digits, "--resume", "run")
    assert (tmp_path / "victim").read_text() == "untouched"


def test_a_loss_that_is_not_finite_stops_with_the_state_before_it(tmp_path, digits):
    said = r"epoch 1/3, step \d/5: the (loss|gradient's norm) is (nan|inf); its images .*rate"
    with pytest.raises(Diverged, match=said) as raised:
        train(tmp_path, digits, *FLAGS, "--lr-mode", "step", "--lr", 1e9, "--run-name", "run")
    assert raised.value.status == 3 and "\n" not in str(raised.value)
    checkpoint, _ = Checkpoints(tmp_path / "params" / "run").newest_whole()
    assert str(checkpoint.path) in str(raised.value)
    assert all(np.isfinite(array).all() for array in checkpoint.arrays().values())


def poison(monkeypatch, *steps):
    """Make the images of some steps of the first epoch not a number."""
    whole = TargetTransform.__call__

    def transform(self, batch):
        example, (epoch, step, _) = whole(self, batch), batch.coordinates
        return example._replace(images=example.images * np.nan) if epoch == 0 and step in steps else example

    monkeypatch.setattr(TargetTransform, "__call__", transform)


def test_a_batch_with_a_bad_loss_can_be_left_out(tmp_path, digits, monkeypatch, capsys):
    poison(monkeypatch, 1, 2)
    flags = (*FLAGS, "--nan-action", "skip")
    train(tmp_path, digits, *flags, "--run-name", "straight")
    assert capsys.readouterr().out.count("left out epoch 1/3") == 2
    with pytest.raises(SystemExit):
        train(tmp_path, digits, *flags, "--run-name", "run", interrupt=stop_at((0, 1)))
    train(tmp_path, digits, "--resume", "run")
    assert results(tmp_path, "run") == results(tmp_path, "straight")


def test_classes_of_other_names_are_other_data(tmp_path, digits):
    letters = digits._replace(class_names=[*"abcdefghi", "\udcff"])
    with pytest.raises(SystemExit):
        train(tmp_path, letters, *FLAGS, "--run-name", "run", interrupt=stop_at((0, 1)))
    with pytest.raises(UserError, match="classes of other names"):
        train(tmp_path, letters._replace(class_names=[*"bacdefghi", "\udcff"]), "--resume", "run")
    shutil.copytree(tmp_path, tmp_path / "copy")
    train(tmp_path / "copy", letters._replace(class_names=None), "--resume", "run", "--epochs", 1)  # nobody knows them
    train(tmp_path, letters, "--resume", "run", "--epochs", 1, "--mix-up-off-epochs", 0)


def test_a_step_that_overflows_is_left_out_and_the_scale_goes_on_with_the_run(tmp_path, digits, monkeypatch):
    monkeypatch.setattr(SingleProcess, "gradient_dtype", "float16")
    poison(monkeypatch, 1)  # a finite loss, by ReLU, and gradients that are not
    with pytest.raises(SystemExit):
        train(tmp_path, digits, *FLAGS, "--run-name", "run", interrupt=stop_at((0, 3)))
    train(tmp_path, digits, "--resume", "run")
    log = (tmp_path / "text" / "run.log").read_text()
    assert log.count("gradients overflowed at epoch 1/3, step 1/5: the scale of the loss is 32768 now") == 1
    checkpoint, _ = Checkpoints(tmp_path / "params" / "run").newest_whole()
    assert checkpoint.facts["loss_scale"] == [FIRST / 2, 3 * STEPS - 2]


def stop_at_the_start(monkeypatch):
    """A signal comes when a run has begun, or been restored, before its first step."""
    start = Run.start

    def then_told(self, *arguments):
        start(self, *arguments)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Run, "start", then_told)


def test_a_run_with_another_end_that_is_stopped_before_its_first_step_keeps_it(tmp_path, digits, monkeypatch):
    train(tmp_path, digits, *FLAGS, "--run-name", "run")
    with monkeypatch.context() as patch:
        stop_at_the_start(patch)
        with pytest.raises(SystemExit):
            train(tmp_path, digits, "--resume", "run", "--epochs", 4)
    train(tmp_path, digits, "--resume", "run")
    assert len((tmp_path / "text" / "run.csv").read_text().splitlines()) == 1 + 4


def test_a_run_that_went_back_to_a_checkpoint_and_was_stopped_goes_on_from_that(tmp_path, digits, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        train(tmp_path, digits, *FLAGS, "--run-name", "run", interrupt=stop_at((1, 2)))
    newest, before = Checkpoints(tmp_path / "params" / "run").paths()
    with monkeypatch.context() as patch:
        stop_at_the_start(patch)
        with pytest.raises(SystemExit):
            train(tmp_path, digits, "--resume", before)
    capsys.readouterr()
    train(tmp_path, digits, "--resume", "run")
    assert "resumed at epoch 2/3, step 0/5" in capsys.readouterr().out
    assert not newest.exists()


@pytest.mark.parametrize("error", [mx.base.MXNetError("cudaMalloc failed: out of memory"), MemoryError()], ids=type)
def test_a_picture_that_has_no_room_costs_no_epoch(monkeypatch, error):
    said = []

    def no_room(*_):
        raise error

    monkeypatch.setattr("training.attention_pictures.picture_of_batch", no_room)
    run = SimpleNamespace(
        _group=SimpleNamespace(is_main_process=True),
        _validation=SimpleNamespace(epoch=lambda epoch: iter([(None,)]), dataset=None),
        _options=SimpleNamespace(network=None),
        _logger=SimpleNamespace(info=said.append),
    )
    Run._picture_attention(run, None, 1)
    assert said == ["out of memory: no picture of the masks of this epoch"]


def test_too_many_bad_losses_in_a_row_stop(tmp_path, digits, monkeypatch):
    poison(monkeypatch, *range(20))
    with pytest.raises(Diverged, match="step 9/13"):
        train(tmp_path, digits, *FLAGS, "--nan-action", "skip", "--run-name", "run", limit=104)
    manifest = json.loads((Checkpoints(tmp_path / "params" / "run").paths()[0] / "manifest.json").read_text())
    assert manifest["facts"]["updates"] == 0


def test_bad_losses_that_do_not_follow_one_another_never_stop(tmp_path, digits, monkeypatch, capsys):
    poison(monkeypatch, *range(0, 24, 2))
    train(tmp_path, digits, *FLAGS, "--epochs", 1, "--nan-action", "skip", "--run-name", "run", limit=192)
    assert capsys.readouterr().out.count("left out epoch 1/1") == 12


@pytest.mark.parametrize("devices", [1, 3])
def test_other_devices_begin_with_the_mean_of_the_statistics(devices):
    def state(count):
        group, net = SingleProcess([mx.cpu(device) for device in range(count)]), nn.BatchNorm(in_channels=2)
        net.initialize(ctx=group.devices)
        return net, TrainingState(net, group.trainer(net.collect_params(), "sgd", {}), group)

    net, of_two = state(2)
    for device in range(2):
        net.running_mean.data(mx.cpu(device))[:] = 1 + 2 * device
    saved = of_two.gather(of_two.statistics())
    net, other = state(devices)
    other.restore(saved, 5)
    assert all((value.asnumpy() == 2).all() for value in net.running_mean.list_data())


def test_other_devices_are_said_with_what_they_change(tmp_path, digits, capsys):
    with pytest.raises(SystemExit):
        train(tmp_path, digits, *FLAGS, "--run-name", "run", interrupt=stop_at((1, 1)))
    shutil.copytree(tmp_path, tmp_path / "copy")
    train(tmp_path / "copy", digits, "--resume", "run", devices=2)  # half the images on each
    assert "workers x devices: 1 x 2 instead of 1 x 1; a step has 8 images as before" in capsys.readouterr().out
    train(tmp_path, digits, "--resume", "run", devices=2, share=8)
    said = [line for line in capsys.readouterr().out.splitlines() if "workers x devices" in line]
    assert len(said) == 1 and "a step has 16 images instead of 8" in said[0] and "rate is the same" in said[0]


def test_other_threads_are_said_and_as_many_are_not(tmp_path, digits, capsys, monkeypatch):
    threads = thread_count()
    with pytest.raises(SystemExit):
        train(tmp_path, digits, *FLAGS, "--run-name", "run", interrupt=stop_at((0, 1)))
    assert f"run run on cpu(0) with threads={threads}: " in capsys.readouterr().out
    with pytest.raises(SystemExit):
        train(tmp_path, digits, "--resume", "run", interrupt=stop_at((0, 2)))
    assert "threads: " not in capsys.readouterr().out
    monkeypatch.setenv("OMP_NUM_THREADS", str(threads + 1))
    with pytest.raises(SystemExit):
        train(tmp_path, digits, "--resume", "run", interrupt=stop_at((0, 3)))
    said = [line for line in capsys.readouterr().out.splitlines() if "threads: " in line]
    assert len(said) == 1 and said[0].startswith(f"threads: {threads + 1} instead of {threads}; ")


def test_as_many_devices_and_strangers_are_nothing_to_say():
    now = {"workers": 2, "devices": 1, "images": 16}
    assert what_changes(now, dict(now)) is None
    for then in (None, [], {}, {**now, "images": "16"}, {"workers": 1}):
        assert what_changes(then, now) is None
    then = {**now, "workers": 4, "images": 32}
    assert what_changes(then, now).startswith("workers x devices: 2 x 1 instead of 4 x 1")
    assert what_changes(then, now).endswith("the learning rate is the same")
    assert what_changes(then, now, rate_follows=True).endswith("the learning rate as many times as high")


def test_checkpoints_within_an_epoch_are_minutes_apart(tmp_path, digits, monkeypatch):
    now, saved, save = [0.0], [], Checkpoints.save
    monkeypatch.setattr("training.run.checkpointer.time", SimpleNamespace(monotonic=lambda: now[0]))

    def noted(self, arrays, facts, before):
        saved.append((facts["position"]["epoch"], facts["position"]["step"]))
        return save(self, arrays, facts, before)

    def six_minutes(*_):
        now[0] += 360

    monkeypatch.setattr(Checkpoints, "save", noted)
    train(tmp_path, digits, *FLAGS, "--epochs", 1, "--run-name", "run", interrupt=six_minutes)
    assert saved == [(0, 0), (0, 2), (0, 4), (1, 0)]


def test_a_state_that_is_not_finite_replaces_none(tmp_path, digits, monkeypatch):
    step = Learner.step

    def spoilt(self, *arguments, **options):
        found = step(self, *arguments, **options)
        if self.state.updates == 7:
            self.net[3].bias.data()[:] = np.inf
        return found

    monkeypatch.setattr(Learner, "step", spoilt)
    with pytest.raises(Diverged, match="is not finite any more and was not saved"):
        train(tmp_path, digits, *FLAGS, "--checkpoint-minutes", 0, "--run-name", "run")
    checkpoint, _ = Checkpoints(tmp_path / "params" / "run").newest_whole()
    assert all(np.isfinite(array).all() for array in checkpoint.arrays().values())


def test_workers_that_found_other_checkpoints_are_told(stopped, digits, monkeypatch):
    gather = SingleProcess.gather

    def both(self, name, rows):
        found = gather(self, name, rows)
        return np.concatenate([found, found + 1]) if name == "progress" else found

    monkeypatch.setattr(SingleProcess, "gather", both)
    with pytest.raises(UserError, match="the workers found different checkpoints"):
        train(stopped, digits, "--resume", "run")


def test_the_best_of_what_was_given_up_is_set_aside(tmp_path, digits, monkeypatch):
    accuracies = iter([0.1, 0.2, 0.3])
    monkeypatch.setattr(Learner, "evaluate", lambda *_: {"loss": 1.0, "accuracy": next(accuracies)})
    train(tmp_path, digits, *FLAGS, "--run-name", "run")
    params = tmp_path / "params" / "run"
    with pytest.raises(SystemExit):
        train(tmp_path, digits, "--resume", Checkpoints(params).paths()[1], interrupt=stop_at((2, 1)))
    assert (params / "abandoned-epoch-0003-best.params").exists()


def test_a_start_that_failed_leaves_its_name_free(tmp_path, digits, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(Checkpoints, "save", lambda *_: (_ for _ in ()).throw(UserError("cannot write")))
        with pytest.raises(UserError, match="cannot write"):
            train(tmp_path, digits, *FLAGS, "--run-name", "run")
    train(tmp_path, digits, *FLAGS, "--run-name", "run")
    with pytest.raises(UserError, match="the run run exists"):
        train(tmp_path, digits, *FLAGS, "--run-name", "run")


def test_the_newest_run_is_found_beside_one_whose_data_cannot_be_reached(tmp_path, digits):
    (tmp_path / "loop").symlink_to("loop")
    train(tmp_path, digits, *FLAGS, "--epochs", 1, "--data-dir", tmp_path / "loop", "--run-name", "run")
    with pytest.raises(SystemExit):
        train(
            tmp_path, digits, *FLAGS, "--data-dir", tmp_path / "loop", "--run-name", "other", interrupt=stop_at((1, 1))
        )
    train(tmp_path, digits, *FLAGS, "--data-dir", tmp_path / "loop", "--resume", "auto")
    assert "resumed at" in (tmp_path / "text" / "other.log").read_text()
