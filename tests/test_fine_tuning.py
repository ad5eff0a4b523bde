"""--init and --freeze: what a network starts from, and what of it stays."""

import functools
import shutil

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd

from base.errors import UserError
from model import AttentionNetCifar, get_attention_cifar, get_resnet_cifar, units
from tests.conftest import assert_refused, run_script
from tests.test_recomputation import mixed_shares
from training.distributed.process_group import SingleProcess
from training.fine_tuning import FineTuning, freeze, start_from
from training.flags import FROZEN_PARTS
from training.learner import initialize, train_step
from training.metrics import target_loss
from training.recomputation import Recomputation
from training.state import TrainingState, is_statistic


def shallow(unit="bottleneck", classes=10):
    return AttentionNetCifar(classes, (1, 1, 1), (1, 1, 1), unit=units[unit])


def values(net):
    return {name: parameter.data().asnumpy() for name, parameter in net._collect_params_with_prefix().items()}


@pytest.fixture(scope="module")
def saved(new_folder):
    """The .params file of a shallow network of 10 classes."""
    mx.random.seed(3)
    net = initialize(shallow(), [mx.cpu()], mx.init.MSRAPrelu())
    with autograd.record():  # its statistics are somewhere else than where they start
        loss = net(mx.nd.random.normal(1, 2, shape=(8, 3, 32, 32))).sum()
    loss.backward()
    mx.nd.waitall()
    path = new_folder("saved") / "ten.params"
    net.save_parameters(str(path))
    return path


def test_what_fits_is_taken_and_the_rest_starts_anew(saved):
    arrays = mx.nd.load(str(saved))
    net = shallow(classes=7)
    taken, anew = start_from(net, arrays)
    assert anew == ["output.weight", "output.bias"] and len(taken) + 2 == len(arrays)
    net.initialize(mx.init.One())
    for name, value in values(net).items():
        expected = arrays[name].asnumpy() if name in taken else np.full(value.shape, float(name == "output.weight"))
        np.testing.assert_array_equal(value, expected)


def test_the_graph_of_a_network_does_not_hold_what_it_starts_from(saved):
    net = shallow()
    start_from(net, mx.nd.load(str(saved)))
    assert len(net(mx.sym.var("data")).tojson()) < 1.1 * len(shallow()(mx.sym.var("data")).tojson())


def test_nothing_that_fits_is_refused(saved):
    with pytest.raises(UserError, match=f"--init {saved}: it has no parameter"):
        FineTuning(functools.partial(get_resnet_cifar, 7, 11), saved, None, "abcdefg")


def test_a_part_that_would_stay_untrained_is_not_frozen(saved):
    deeper = functools.partial(AttentionNetCifar, 10, (1, 1, 1), (2, 1, 1))
    assert "anew: features.3 (" in FineTuning(deeper, saved, "stem", "0123456789").summary
    with pytest.raises(UserError, match=r"--freeze stages: features\.3 \(\d+ parameters\)"):
        FineTuning(deeper, saved, "stages", "0123456789")


def test_normalization_without_statistics_is_not_frozen(saved, tmp_path):
    arrays = mx.nd.load(str(saved))
    mx.nd.save(str(tmp_path / "a.params"), {name: each for name, each in arrays.items() if "running" not in name})
    with pytest.raises(UserError, match="--freeze stem: features.0"):
        FineTuning(shallow, tmp_path / "a.params", "stem", "0123456789")


@pytest.mark.parametrize(
    "make", [functools.partial(get_attention_cifar, 10, 92), functools.partial(get_resnet_cifar, 10, 20)]
)
def test_parts_are_the_networks_beginnings(make):
    frozen = {}
    for part in FROZEN_PARTS:
        net = make()
        freeze(net, part)
        frozen[part] = {
            name
            for name, p in net._collect_params_with_prefix().items()
            if p.grad_req == "null" and not is_statistic(p)
        }
    names = {name for name, p in make()._collect_params_with_prefix().items() if not is_statistic(p)}
    assert frozen["all-but-output"] == {name for name in names if not name.startswith("output.")}
    assert frozen["stem"] < frozen["stages"] < frozen["all-but-output"]
    assert all(name.startswith("features.0.") for name in frozen["stem"])
    width = {"features.0": 0}  # the last residual units are the attention network's fourth stage, and train
    left = frozen["all-but-output"] - frozen["stages"]
    net = make()
    for name in left:
        width[name] = net._collect_params_with_prefix()[name].shape[0]
    assert max(width.values()) == net.output.weight.shape[1]


def trained(saved, unit, part, memory_saving=False, devices=1):
    """A shallow network's values before and after two steps of fine-tuning, and its trainer."""
    group = SingleProcess([mx.cpu(device) for device in range(devices)])
    make_net = FineTuning(functools.partial(shallow, unit), saved, part, "0123456789")
    mx.random.seed(1)
    net = initialize(make_net(), group.devices, mx.init.MSRAPrelu(), memory_saving=memory_saving)
    trainer = group.trainer(net.collect_params(), "nag", {"momentum": 0.9, "wd": 1e-2, "learning_rate": 0.1})
    state = TrainingState(net, trainer, group)
    before = state.gather(state.statistics())
    forward = Recomputation(net) if memory_saving else net
    for seed in range(2):
        train_step(forward, trainer, mixed_shares(16, devices, seed), group)
    return net, before, state.gather(state.statistics())


@pytest.fixture(scope="module", params=["bottleneck", "resnext"])
def of_unit(request, saved, new_folder):
    """A unit's name and a .params file of its shallow network."""
    if request.param == "bottleneck":
        return request.param, saved
    path = new_folder("saved") / "unit.params"
    initialize(shallow(request.param), [mx.cpu()], mx.init.MSRAPrelu()).save_parameters(str(path))
    return request.param, path


@pytest.mark.parametrize("part", FROZEN_PARTS)
def test_what_is_frozen_does_not_move_and_the_rest_does(of_unit, part):
    unit, path = of_unit
    net, before, after = trained(path, unit, part)
    pieces = net.beginnings()[part]
    frozen = tuple(f"features.{place}." for place in range(pieces))
    still = 0
    for name, value in after.items():
        kind, _, parameter = name.partition("/")
        same = np.array_equal(before[name], value)
        assert same == parameter.startswith(frozen), name
        still += same
        assert not (kind == "optimizer" and parameter.startswith(frozen))  # no momentum for it
    assert still > 4


def test_saving_memory_changes_no_bit_of_it(saved):
    *_, kept = trained(saved, "bottleneck", "stages")
    *_, again = trained(saved, "bottleneck", "stages", memory_saving=True)
    assert kept.keys() == again.keys()
    for name, value in kept.items():
        np.testing.assert_array_equal(value, again[name], name)


def test_replicas_keep_what_is_frozen(saved):
    net, before, after = trained(saved, "bottleneck", "stages", devices=2)
    arrays = mx.nd.load(str(saved))
    for name, parameter in net._collect_params_with_prefix().items():
        if name.startswith("features.2."):
            for value in parameter.list_data():
                np.testing.assert_array_equal(value.asnumpy(), arrays[name].asnumpy())
    assert any(not np.array_equal(before[name], after[name]) for name in after)


def test_a_frozen_part_computes_in_training_what_it_does_in_validation(saved):
    """The classifier's gradient is that of a linear model on the validated network's features."""
    arrays = mx.nd.load(str(saved))
    images, targets = mixed_shares(16, 1, 5)[0]
    reference = shallow()
    start_from(reference, arrays)
    reference.initialize()
    features = reference.features(images)
    weight, bias = reference.output.weight, reference.output.bias
    with autograd.record():
        loss = target_loss(reference.output(features), targets)
    loss.backward()

    net = FineTuning(shallow, saved, "all-but-output", "0123456789")()
    initialize(net, [mx.cpu()], mx.init.Zero())
    with autograd.record():
        loss = target_loss(net(images), targets)
    loss.backward()
    for expected, parameter in ((weight, net.output.weight), (bias, net.output.bias)):
        np.testing.assert_allclose(parameter.grad().asnumpy(), expected.grad().asnumpy(), rtol=1e-3, atol=1e-4)


# From the shell: a network of 11 layers on a few digits.


def fine_tune(folder, digits, *flags):
    sets = digits.records["train"].parents[2]
    return run_script(
        "cifar10_train.py",
        *("--dataset", "digits", "--data-dir", sets, "--log-dir", folder, "--limit", 24, "--batch-size", 8),
        *("--model", "resnet", "--num-layers", 11, "--seed", 1),
        *flags,
    )


@pytest.fixture(scope="module")
def pretrained(new_folder, digits):
    """The folder params/RUN of a training from the shell."""
    folder = new_folder("pretrained")
    process = fine_tune(folder, digits, "--epochs", 1, "--run-name", "first")
    assert process.returncode == 0, process.stderr
    return folder / "params" / "first"


def test_a_resumed_run_keeps_what_is_frozen_and_ends_as_one_that_was_not_stopped(tmp_path, digits, pretrained):
    shutil.copytree(pretrained, tmp_path / "from")
    path = tmp_path / "from" / "best.params"
    flags = ["--init", path, "--freeze", "stages", "--checkpoint-minutes", 0]
    whole = fine_tune(tmp_path, digits, *flags, "--run-name", "whole", "--epochs", 2)
    assert whole.returncode == 0, whole.stderr
    log = (tmp_path / "text" / "whole.log").read_text()
    assert f"started from {path}: " in log and "anew" not in log
    part = fine_tune(tmp_path, digits, *flags, "--run-name", "part", "--epochs", 1, "--mix-up-off-epochs", 0)
    assert part.returncode == 0, part.stderr
    path.unlink()  # a checkpoint has all that is needed
    process = run_script("cifar10_train.py", "--resume", "part", "--log-dir", tmp_path, "--epochs", 2)
    assert process.returncode == 0, process.stderr
    ends = [mx.nd.load(str(tmp_path / "params" / name / "last.params")) for name in ("whole", "part")]
    start = mx.nd.load(str(pretrained / "best.params"))
    moved = set()
    for name, value in ends[0].items():
        np.testing.assert_array_equal(value.asnumpy(), ends[1][name].asnumpy(), name)
        if not np.array_equal(value.asnumpy(), start[name].asnumpy()):
            moved.add(".".join(name.split(".")[:-1]))
    assert moved == {"features.7", "output"}


def test_a_classifier_of_as_many_other_classes_starts_anew(tmp_path, digits, pretrained):
    path = tmp_path / "best.params"
    shutil.copy(pretrained / "best.params", path)
    described = (pretrained / "network.json").read_text()
    (tmp_path / "network.json").write_text(described.replace('"0",', '"a",'))
    process = fine_tune(tmp_path, digits, "--init", path, "--epochs", 1)
    assert process.returncode == 0, process.stderr
    assert "; anew: output.weight, output.bias" in process.stdout


def test_what_cannot_be_started_from_is_refused_in_one_line(tmp_path, digits, pretrained):
    refused = functools.partial(fine_tune, tmp_path, digits, "--epochs", 1)
    assert_refused(refused("--freeze", "stem"), "--freeze", "--init")
    assert_refused(refused("--init", tmp_path / "none.params"), "none.params", "No such file")
    best = pretrained / "best.params"
    assert_refused(refused("--init", best, "--freeze", "top"), "--freeze", "all-but-output")
    assert_refused(refused("--init", best, "--num-layers", 20, "--freeze", "stages"), "--freeze stages", "features.")
    damaged = bytearray(best.read_bytes())
    damaged[-9] ^= 1
    (tmp_path / "best.params").write_bytes(damaged)
    shutil.copy(pretrained / "network.json", tmp_path)
    assert_refused(refused("--init", tmp_path / "best.params"), "best.params", "damaged or was replaced")
    assert not (tmp_path / "params").exists()
