"""Damaged input of every kind the project reads ends in one clean line or in a correct result, and writes nowhere else.

Each test looks at as many damaged inputs as it says: over 3,000 in all, the same ones every time. RAN_FUZZ=32 makes
them as many times more, 100,000, and others every time.
"""

import argparse
import contextlib
import gzip
import importlib
import io
import json
import os
import shutil
import sys
import tarfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import cifar10_train
import imagenet_train
from base.errors import UserError
from base.files import file_digest
from base.runtime import prepare_mxnet
from data.cifar import cifar_archives, read_rows
from data.datasets import small_images
from data.download import unpack
from data.folders import FolderImages
from data.imagenet import as_jpeg, open_imagenet
from data.images import fault
from data.records import Records, ensure_records, write_records
from data.views import read_view
from scripts.experiments import finished
from scripts.launch import workers
from scripts.plot_curves import plot_curves
from tests.conftest import ROOT
from tests.test_checkpoint import save_some
from tests.test_imagenet import encoded, smooth_image
from tests.test_records import Splits, some_images
from tests.test_resume import FLAGS, snapshot, stop_at, train
from training.distributed.launcher import launch_info
from training.flags import UNITS, add_evaluation_flags, check_evaluation_flags, parse_arguments, training_parser
from training.network_file import NETWORK_FILE, NetworkFile, describe, read_description, read_parameters
from training.run.checkpoint import Checkpoint, Checkpoints
from training.run.files import RunFiles, Written, new_run

TIMES = int(os.environ.get("RAN_FUZZ", "1"))


def fuzzed(examples):
    """As many examples as said, the same in every run, or a multiple of them."""
    return settings(
        max_examples=examples * TIMES,
        derandomize=TIMES == 1,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


places = st.floats(0, 1, exclude_max=True)
damages = st.lists(
    st.one_of(
        st.tuples(st.just("flip"), places, st.integers(1, 255)),
        st.tuples(st.just("cut"), places, st.just(0)),
        st.tuples(st.just("drop"), places, st.integers(1, 40)),
        st.tuples(st.just("insert"), places, st.binary(min_size=1, max_size=12)),
        st.tuples(st.just("number"), places, st.sampled_from([0, 1, 2**29 - 1, 2**31, 2**32 - 1])),
    ),
    min_size=1,
    max_size=3,
)


def damaged(content, damage):
    """``content``, bytes, with every one of the ``damages`` done to it."""
    content = bytearray(content)
    for kind, place, value in damage:
        position = int(place * len(content))
        if kind == "flip" and content:
            content[position] ^= value
        elif kind == "cut":
            del content[position:]
        elif kind == "drop":
            del content[position : position + value]
        elif kind == "insert":
            content[position:position] = value
        elif kind == "number" and content:
            content[position // 4 * 4 : position // 4 * 4 + 4] = value.to_bytes(4, "little")
    return bytes(content)


@contextlib.contextmanager
def one_line_at_most():
    """What is raised inside is a `UserError` of one line, or nothing."""
    try:
        yield
    except UserError as error:
        assert str(error) and "\n" not in str(error)


@fuzzed(150)
@given(damage=damages)
def test_binary_files(tmp_path, damage):
    draw = np.random.default_rng(0)
    rows = draw.integers(0, 256, (3, 3073), dtype=np.uint8)
    rows[:, 0] = [0, 5, 9]
    (tmp_path / "rows.bin").write_bytes(damaged(rows.tobytes(), damage))
    with one_line_at_most():
        images, labels = read_rows(tmp_path / "rows.bin", cifar_archives["cifar10"])
        assert images.shape == (len(labels), 32, 32, 3) and labels.max() < 10


@fuzzed(200)
@given(damage=damages, which=st.sampled_from(["a.rec", "a.idx"]))
def test_record_files(tmp_path, damage, which):
    if not (tmp_path / "good").exists():
        (tmp_path / "good").mkdir()
        write_records(tmp_path / "good" / "a.rec", some_images())
    for name in ("a.rec", "a.idx"):
        content = (tmp_path / "good" / name).read_bytes()
        (tmp_path / name).write_bytes(damaged(content, damage) if name == which else content)
    with one_line_at_most():
        records = Records(tmp_path / "a.rec")
        positions = np.arange(len(records))
        assert records.labels(positions).shape == (len(records),)
        assert all(image.dtype == np.uint8 for image in records.encoded(positions))


@fuzzed(30)
@given(damage=damages, which=st.sampled_from(["train.rec", "test.idx", "manifest.json"]))
def test_record_folders_are_written_anew(tmp_path, damage, which):
    paths = ensure_records(tmp_path / "set", {"version": 1}, Splits())
    whole = paths["train"].read_bytes()
    path = tmp_path / "set" / which
    path.write_bytes(damaged(path.read_bytes(), damage))
    ensure_records(tmp_path / "set", {"version": 1}, Splits())
    assert paths["train"].read_bytes() == whole


@fuzzed(20)
@given(damage=damages)
def test_images_that_are_read_in_a_training(tmp_path, digits, damage):
    from data.loader import Loader, LoaderOptions

    for name in ("train.rec", "train.idx"):
        shutil.copy(digits.records["train"].with_name(name), tmp_path / name)
    path = tmp_path / "train.rec"
    start, content = 4000, path.read_bytes()
    path.write_bytes(content[:start] + damaged(content[start : start + 4000], damage) + content[start + 4000 :])
    import mxnet as mx

    dataset = digits._replace(records={"train": path})
    with one_line_at_most():
        batches = list(Loader(dataset, "train", LoaderOptions(4, seed=1, limit=24), mx.cpu(), training=False).epoch(0))
        assert all(batch.images.shape == (4, 3, 32, 32) for batch in batches)


@fuzzed(150)
@given(damage=damages, which=st.sampled_from(["arrays.bin", "manifest.json"]))
def test_checkpoints(tmp_path, damage, which):
    folder = tmp_path / "run"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    newest = save_some(folder, 2).paths()[0]
    whole = (newest / which).read_bytes()
    (newest / which).write_bytes(damaged(whole, damage))
    before = snapshot(tmp_path)
    checkpoint, lines = Checkpoints(folder).newest_whole()
    harmless = checkpoint.path == newest  # such as white space at the manifest's end
    assert checkpoint.facts == {"number": 2 if harmless else 1} and len(lines) == (0 if harmless else 1)
    assert checkpoint.arrays()["weight"].tolist() == [[number * checkpoint.facts["number"] for number in row]
                                                      for row in ([0, 1, 2], [3, 4, 5])]  # fmt: skip
    assert snapshot(tmp_path) == before


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def stopped(new_folder, digits):
    """The newest checkpoint of a run that was stopped."""
    folder = new_folder("stopped")
    with pytest.raises(SystemExit):
        train(folder, digits, *FLAGS, "--run-name", "run", interrupt=stop_at((0, 2)))
    return Checkpoints(folder / "params" / "run").newest_whole()[0]


FACTS = ["settings", "data", "position", "updates", "sizes", ("settings", "epochs"), ("settings", "lr_steps"),
         ("settings", "data_dir"), ("position", "step"), ("position", "averages"), ("position", "best_epoch"),
         ("sizes", "run.csv"), ("settings", "help"), ("settings", "log_dir"), ("position", "steps"),
         ("settings", "unit"), ("settings", "model"), ("settings", "float16"), ("settings", "seed")]  # fmt: skip


@fuzzed(100)
@given(fact=st.sampled_from(FACTS), value=json_values)
def test_checkpoints_that_a_stranger_made(tmp_path, stopped, capsys, fact, value):
    """The checksums are right here, and the contents are not."""
    facts = json.loads(json.dumps(stopped.facts))
    if isinstance(fact, tuple):
        facts[fact[0]][fact[1]] = value
    else:
        facts[fact] = value
    copy = tmp_path / "log"
    shutil.rmtree(copy, ignore_errors=True)
    (copy / "params" / "run").mkdir(parents=True)
    Checkpoints(copy / "params" / "run").save(stopped.arrays(), facts, None)
    before = snapshot(tmp_path)
    parser = training_parser("test", datasets=["digits"], batch_size=8)
    with one_line_at_most():
        try:
            args = parse_arguments(parser, ["--log-dir", str(copy), "--resume", "run"])
        except SystemExit as ending:
            assert ending.code == 2 and capsys.readouterr().err.count("\n") == 1
        else:
            progress = args.resumed.progress(5)
            assert 0 <= progress.step <= 5
            assert (args.log_dir, args.float16, args.unit in UNITS) == (str(copy), False, True)
    assert snapshot(tmp_path) == before


@fuzzed(60)
@given(damage=damages)
def test_csv_files(tmp_path, damage):
    header = "epoch,train_loss,train_metric,val_loss,val_accuracy,lr,images_per_second,seconds\r\n"
    rows = "".join(f"{i},2.1,0.2,2.2,0.25,0.1,900.5,3.25\r\n" for i in range(1, 4))
    (tmp_path / "run.csv").write_bytes(damaged((header + rows).encode(), damage))
    before = {path for path in tmp_path.rglob("*") if path.suffix != ".png"}
    with one_line_at_most():
        assert all(path.read_bytes().startswith(b"\x89PNG") for path in plot_curves(tmp_path / "run.csv", tmp_path))
    assert {path for path in tmp_path.rglob("*") if path.suffix != ".png"} == before


@fuzzed(100)
@given(damage=damages, which=st.sampled_from(["csv", "log", "event"]))
def test_files_of_a_run_that_is_gone_on_with(tmp_path, damage, which):
    """No row is lost; a log and events are what they were, or are moved aside as somebody left them."""
    folder = tmp_path / "log"
    shutil.rmtree(folder, ignore_errors=True)
    with new_run(folder, "run", "stem") as files:
        files.log.write_bytes(b"a line\nand another one\n")
        files.board.mkdir()
        (files.board / "events.out.tfevents.1.host").write_bytes(bytes(range(100)))
        files.add_row({"epoch": 1, "val_accuracy": 0.5})
        files.add_row({"epoch": 2, "val_accuracy": 0.75})
        written = Written.from_json(json.loads(json.dumps(files.flush())))
        path = {"csv": files.csv, "log": files.log, "event": files.event_files()[0]}[which]
        whole = path.read_bytes()
        changed = damaged(whole, damage)
        path.write_bytes(changed)
    with RunFiles(folder, "run") as files:
        lines = files.restore(written)
    aside = [path.read_bytes() for path in folder.rglob("*.changed")]
    if changed.startswith(whole):
        assert not lines and not aside and path.read_bytes() == whole
    else:
        assert len(lines) == 1 and aside == [changed]
        assert path.read_bytes() == whole if which == "csv" else not path.exists()


def cifar_flags():
    parser = training_parser(cifar10_train.__doc__, datasets=list(small_images), recipes=cifar10_train.RECIPES)
    add_evaluation_flags(parser)
    return parser


SCRIPTS = {"cifar10_train.py": cifar_flags, "imagenet_train.py": imagenet_train.flags}
flags = st.sampled_from(sorted({name for make in SCRIPTS.values() for name in make()._option_string_actions}))
words = flags | st.text(max_size=8) | st.sampled_from(["0", "-1", "1e400", "nan", "64", "80,120", "auto", "../..", "=",
                                                       "tricks", "best", "9" * 400, "1e-320", "a\nb"])  # fmt: skip


@fuzzed(400)
@given(script=st.sampled_from(list(SCRIPTS)), command=st.lists(words, max_size=5))
def test_flags(tmp_path, monkeypatch, capsys, script, command):
    capsys.readouterr()
    with monkeypatch.context() as patch, one_line_at_most():
        patch.chdir(tmp_path)  # where --log-dir and --data-dir are by default
        patch.setattr(sys, "argv", [script, *command])
        try:
            parser = SCRIPTS[script]()
            args = parse_arguments(parser, command)
            check_evaluation_flags(parser, args)
            assert args.epochs > 0 and args.batch_size > 0 and args.seed >= 0
        except SystemExit as ending:
            said = capsys.readouterr()
            assert (ending.code, said.err.count("\n")) == (2, 1) or (ending.code, said.err) == (0, "")  # --help
    assert not list(tmp_path.iterdir())


FORMATS = ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"]


@fuzzed(300)
@given(damage=damages, kind=st.sampled_from(FORMATS))
def test_files_of_images(tmp_path, damage, kind):
    """What is read is a whole picture; what is wrong is a line."""
    content = damaged(encoded(smooth_image(40, 30), kind), damage)
    (tmp_path / "image").write_bytes(content)
    for read in (lambda: read_view(tmp_path / "image", 32, 0.875).shape, lambda: as_jpeg(content)[0][:2]):
        try:
            assert read() in ((32, 32, 3), b"\xff\xd8")
        except ValueError as error:
            assert str(error) and "\n" not in str(error)
    assert "\n" not in (fault(content) or "")


@fuzzed(100)
@given(damage=damages)
def test_lists_of_classes(tmp_path, damage):
    for name in ("train.rec", "val.rec"):
        (tmp_path / name).touch()
    (tmp_path / "classes.txt").write_bytes(damaged("ant\nbee\nKäfer\n".encode(), damage))
    with one_line_at_most():
        assert open_imagenet(tmp_path).classes == len(open_imagenet(tmp_path).class_names) > 0


@fuzzed(100)
@given(damage=damages)
def test_rows_of_an_experiment(tmp_path, damage):
    rows = "".join(f"{epoch},0.5,36.0\r\n" for epoch in (1, 2, 3))
    (tmp_path / "text").mkdir(exist_ok=True)
    content = damaged(f"epoch,val_accuracy,seconds\r\n{rows}".encode(), damage)
    (tmp_path / "text" / "run.csv").write_bytes(content)
    found = finished("run", 3, tmp_path)
    assert found is None or all(isinstance(row["val_accuracy"] + row["seconds"], float) for row in found)


def test_a_manifest_of_many_levels_is_damage(tmp_path):
    path = save_some(tmp_path, 1).paths()[0]
    (path / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(ValueError):
        Checkpoint(path)


@fuzzed(150)
@given(damage=damages, packed=st.booleans())
def test_archives(tmp_path, damage, packed):
    """Damage to the compressed bytes, or to the archive before it is compressed."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for name in ("set/a.bin", "set/b.bin"):
            entry = tarfile.TarInfo(name)
            entry.size = 600
            tar.addfile(entry, io.BytesIO(bytes(600)))
    content = content.getvalue()
    archive = tmp_path / "set.tar.gz"
    archive.write_bytes(
        damaged(gzip.compress(content, mtime=0), damage) if packed else gzip.compress(damaged(content, damage))
    )
    folder = tmp_path / "out"
    shutil.rmtree(folder, ignore_errors=True)
    with one_line_at_most():
        unpack(archive, ["set/a.bin", "set/b.bin"], folder)
        assert sorted(path.name for path in folder.rglob("*.*")) == ["a.bin", "b.bin"]
    assert {path.name for path in tmp_path.iterdir()} <= {"set.tar.gz", "out"}
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*")} <= {"set", "set/a.bin", "set/b.bin"}


@pytest.fixture(scope="module")
def described(new_folder, digits):
    """A folder with a small .params file and the network.json of it."""
    import mxnet as mx

    folder = new_folder("described")
    mx.nd.save(str(folder / "best.params"), {"weight": mx.nd.ones((2, 3)), "bias": mx.nd.zeros(3)})
    digest = file_digest(folder / "best.params")
    NetworkFile(folder, describe(digits, "cifar", 56, "bottleneck")).add(["best.params"], digest, 1, 0.5)
    return folder


@fuzzed(150)
@given(damage=damages)
def test_damaged_descriptions_of_networks(tmp_path, described, damage):
    shutil.copytree(described, tmp_path, dirs_exist_ok=True)
    path = tmp_path / NETWORK_FILE
    path.write_bytes(damaged(path.read_bytes(), damage))
    with one_line_at_most():
        assert read_description(tmp_path / "best.params").depth > 0


FIELDS = ["family", "depth", "unit", "classes", "input_size", "mean", "std", "crop_ratio", "dataset", "attention",
          "learning", "mask", "modules", "further"]  # fmt: skip


@fuzzed(250)
@given(field=st.sampled_from(FIELDS), value=json_values)
def test_descriptions_of_networks_that_a_stranger_made(tmp_path, described, field, value):
    shutil.copytree(described, tmp_path, dirs_exist_ok=True)
    path = tmp_path / NETWORK_FILE
    content = json.loads(path.read_text())
    content["network"][field] = value
    path.write_text(json.dumps(content))
    with one_line_at_most():
        assert read_description(tmp_path / "best.params").classes


@fuzzed(150)
@given(damage=damages, renamed=st.booleans())
def test_parameter_files(tmp_path, described, damage, renamed):
    """Under its own name a file of other bytes is not even opened; under another one MXNet reads what is in it."""
    shutil.copytree(described, tmp_path, dirs_exist_ok=True)
    path = tmp_path / ("copy.params" if renamed else "best.params")
    whole = (described / "best.params").read_bytes()
    path.write_bytes(damaged(whole, damage))
    with one_line_at_most():
        read_description(path)
        assert renamed or path.read_bytes() == whole
        assert all(array.shape for array in read_parameters(path).values())


LAUNCH = ["DMLC_ROLE", "DMLC_WORKER_ID", "BYTEPS_LOCAL_SIZE", "BYTEPS_LOCAL_RANK", "HOROVOD_RANK", "HOROVOD_LOCAL_SIZE"]
counts = st.sampled_from(
    ["worker", "server", "0", "1", "-1", "", "1e3", "9" * 5000, "\u0661", "0,1", "," * 5000, "all", "2,3"]
) | st.text(max_size=5)


@fuzzed(150)
@given(environ=st.dictionaries(st.sampled_from(LAUNCH), counts))
def test_what_a_launcher_says(environ):
    with one_line_at_most():
        assert launch_info(environ).rank >= 0


@fuzzed(100)
@given(devices=counts, threads=counts, flag=st.sampled_from([None, 0, 1, 3]))
def test_what_decides_how_many_workers_and_threads_there_are(devices, threads, flag):
    environ = {"NVIDIA_VISIBLE_DEVICES": devices, "OMP_NUM_THREADS": threads}
    with one_line_at_most():
        started = workers(argparse.Namespace(num_gpus=flag, worker_id=None, command=["true"]), dict(environ))
        assert 0 < len(started) <= 1024
    with one_line_at_most():
        prepare_mxnet(environ)
        assert threads == "" or 0 < int(threads) <= 1024


names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=6).filter(
    lambda name: name not in (".", "..") and len(name.encode()) < 200
)
entries = st.dictionaries(
    names | st.builds("{}.jpg".format, names),
    st.sampled_from(["file", "folder", "link", "pipe", "upwards"]),
    max_size=4,
)


@fuzzed(150)
@given(classes=st.dictionaries(names, entries, max_size=3), beside=entries)
def test_class_folders(tmp_path, classes, beside):
    folder = tmp_path / "set"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for place, found in [*((folder / name, found) for name, found in classes.items()), (folder, beside)]:
        place.mkdir(exist_ok=True)
        for name, kind in found.items():
            if os.path.lexists(place / name):
                continue
            if kind == "file":
                (place / name).write_bytes(b"some bytes")
            elif kind == "folder":
                (place / name).mkdir()
            elif kind == "pipe":
                os.mkfifo(place / name)
            else:
                (place / name).symlink_to("nowhere" if kind == "link" else "..")
    with one_line_at_most():
        images = FolderImages(folder)
        positions = np.arange(len(images))
        assert [len(content) for content in images.encoded(positions)] == [10] * len(images)
        assert set(images.labels(positions)) == set(range(len(set(images.labels(positions)))))


class Parsed(Exception):
    """A command line that was accepted; what it asks for is not done."""


TOOLS = [
    f"{path.parent.name}.{path.stem}"
    for folder in ("scripts", "data", "model")
    for path in sorted((ROOT / folder).glob("*.py"))
    if "def main()" in path.read_text() and path.stem != "horovodrun"  # whose flags are Horovod's
]
tool_words = st.sampled_from(
    ["--out", "--params", "--limit", "--num-gpus", "--seed", "--workers", "--batch-size", "--input-size", "--classes",
     "--scheduler", "--stops", "--minutes", "--scale", "--jobs", "--images", "--count", "--top", "--json", "--help",
     "0", "-1", "1e400", "nan", "64", "9" * 400, "learning", "a\nb", "--"]
) | st.text(max_size=8)  # fmt: skip


@fuzzed(400)
@given(tool=st.sampled_from(TOOLS), command=st.lists(tool_words, max_size=5))
def test_flags_of_the_tools(monkeypatch, capsys, tool, command):
    module, parse = importlib.import_module(tool), argparse.ArgumentParser.parse_args

    def parse_only(parser, *arguments):
        parse(parser, *arguments)
        raise Parsed

    capsys.readouterr()
    with monkeypatch.context() as patch, one_line_at_most(), contextlib.suppress(Parsed):
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
        patch.setattr(sys, "argv", [tool, *command])
        try:
            module.main()
        except SystemExit as ending:
            said = capsys.readouterr()
            assert (ending.code, said.err.count("\n")) == (2, 1) or (ending.code, said.err) == (0, "")  # --help
