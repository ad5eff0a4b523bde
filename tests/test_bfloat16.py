"""Networks that compute in bfloat16: nearly float32's numbers, with parameters in float32, on processors that can."""

import os
import subprocess
import sys
from collections import Counter

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd, gluon

from base import runtime
from base.errors import UserError
from base.runtime import bfloat16_pays, cpu_features, prepare_bfloat16, uses_amx
from model import AttentionNet, AttentionNetCifar, get_resnet_cifar, units
from model.attention import AttentionVariant
from model.onednn import graph, hybridize
from tests.conftest import ROOT, assert_refused, run_script
from tests.test_recomputation import mixed_shares
from tests.test_training import train_on_digits
from training.distributed.process_group import SingleProcess
from training.learner import initialize, train_step
from training.recomputation import Recomputation
from training.run.run import other_precision
from training.state import TrainingState

needs_bfloat16 = pytest.mark.skipif(
    "avx512_bf16" not in cpu_features(), reason="this processor has no AVX512-BF16, nor AMX"
)

AMX = "fpu avx512_bf16 amx_bf16 amx_tile amx_int8"


# The processor


@pytest.fixture
def machine(tmp_path):
    """Makes a /proc/cpuinfo of a processor's features and vendor, and says where."""

    def make(features, vendor="AuthenticAMD"):
        (tmp_path / "proc").mkdir()
        (tmp_path / "proc/cpuinfo").write_text(
            f"processor\t: 0\nvendor_id\t: {vendor}\nflags\t\t: {features}\n\nprocessor\t: 1\nflags\t: no\n"
        )
        return tmp_path

    return make


@pytest.mark.parametrize(
    "features, chosen, allowed, then",
    [
        ("fpu avx512_bf16", None, False, None),
        ("fpu avx512_bf16", "ALL", False, "ALL"),
        ("fpu avx512_bf16", "AVX512_CORE_AMX", True, "AVX512_CORE_BF16"),
        (AMX, None, True, "AVX512_CORE_AMX"),
        (AMX, "avx512_core_amx", True, "AVX512_CORE_AMX"),
        (AMX, None, False, None),
        (AMX, "AVX512_CORE_AMX", False, "AVX512_CORE_BF16"),  # or the process would end in an illegal instruction
        (AMX, "AVX512_CORE_BF16", True, "AVX512_CORE_BF16"),
        ("fpu avx512_bf16 amx_tile amx_int8", None, True, None),
    ],
)
def test_amx_is_used_where_processor_kernel_and_user_let_it(machine, capsys, features, chosen, allowed, then):
    environ = {} if chosen is None else {runtime.ISA_VARIABLE: chosen}
    prepare_bfloat16(environ, machine(features), lambda: allowed)
    assert environ.get(runtime.ISA_VARIABLE) == then
    assert uses_amx(environ) == (then == "AVX512_CORE_AMX")
    refused = features == AMX and not allowed
    assert capsys.readouterr().err.count("the kernel does not allow AMX") == refused


@pytest.mark.parametrize(
    "features, chosen, words", [("fpu avx512f", None, "neither"), ("", None, "neither"), (AMX, "AVX2", "AVX2")]
)
def test_a_processor_or_a_user_without_bfloat16_is_refused(machine, features, chosen, words):
    environ = {} if chosen is None else {runtime.ISA_VARIABLE: chosen}
    with pytest.raises(UserError, match=words):
        prepare_bfloat16(environ, machine(features), lambda: True)
    assert not uses_amx(environ)


@pytest.mark.parametrize(
    "features, vendor, allowed, pays",
    [
        ("fpu avx512_bf16", "AuthenticAMD", False, True),
        ("fpu avx512_bf16", "GenuineIntel", False, False),
        (AMX, "GenuineIntel", True, False),
        (AMX, "GenuineIntel", False, False),
        ("fpu avx512f", "AuthenticAMD", False, False),
    ],
)
def test_where_bfloat16_does_not_pay_is_said(machine, capsys, features, vendor, allowed, pays):
    root = machine(features, vendor)
    assert bfloat16_pays({}, root, lambda: allowed) == pays
    if "avx512_bf16" in features:
        prepare_bfloat16({}, root, lambda: allowed)
        slower = not pays and not allowed
        assert capsys.readouterr().err.count("may be slower than float32") == slower


@pytest.mark.parametrize("chosen, pays", [("AVX2", False), ("AVX512_CORE_BF16", True)])
def test_a_users_choice_decides_whether_it_pays(machine, chosen, pays):
    assert bfloat16_pays({runtime.ISA_VARIABLE: chosen}, machine("fpu avx512_bf16"), lambda: True) == pays


def test_who_leaves_amx_out_is_told(machine, capsys):
    prepare_bfloat16({runtime.ISA_VARIABLE: "AVX512_CORE_BF16"}, machine(AMX, "GenuineIntel"), lambda: True)
    assert "AVX512_CORE_BF16 leaves AMX out" in capsys.readouterr().err


def test_the_kernel_is_asked_and_its_answer_holds():
    # in a process of its own: what the kernel has allowed stays allowed
    code = (
        "import ctypes\nfrom base import runtime\nallowed, granted = runtime._may_use_amx(), ctypes.c_uint64()\n"
        "ctypes.CDLL(None).syscall(runtime.ARCH_PRCTL, 0x1022, ctypes.byref(granted))  # ARCH_GET_XCOMP_PERM\n"
        "print(allowed == bool(granted.value >> runtime.XFEATURE_XTILEDATA & 1))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr


@pytest.mark.parametrize("script", ["cifar10_train.py", "imagenet_train.py"])
def test_it_is_for_the_cpu(script):
    assert_refused(run_script(script, "--bfloat16", "--num-gpus", 1), "--bfloat16 is for the CPU")
    assert_refused(run_script(script, "--bfloat16", "--float16"), "--float16 needs --num-gpus")


# The network


def without_chaos(net):
    """Let the units of an uninitialized network start nearly as shortcuts.

    From the usual start, normalizations in a row turn any rounding into another gradient.
    """

    def start_small(block):
        if isinstance(block, tuple(units.values())):
            block.last_scale.init = mx.init.Normal(0.01)

    return net.apply(start_small)


def passed(make, size, dtype, batch=8):
    """A network of a type, and what a pass forward and back gives: logits, {name: gradient}."""
    mx.random.seed(1)
    images, labels = mx.nd.random.normal(shape=(batch, 3, size, size)), mx.nd.arange(batch) % 10
    net = initialize(without_chaos(make()), [mx.cpu()], mx.init.MSRAPrelu("in", 0), dtype)
    with autograd.record():
        logits = net(images)
        loss = gluon.loss.SoftmaxCrossEntropyLoss()(logits, labels)
    loss.backward()
    parameters = net._collect_params_with_prefix()
    return net, logits, {name: p.grad() for name, p in parameters.items() if p.grad_req != "null"}


def shallow(unit="bottleneck", **variant):
    return AttentionNetCifar(10, (1, 1, 1), (1, 1, 1), unit=units[unit], variant=AttentionVariant(**variant))


NETWORKS = {
    **{unit: (lambda unit=unit: shallow(unit), 16) for unit in units},
    "channel": (lambda: shallow(attention="channel"), 16),
    "spatial": (lambda: shallow(attention="spatial"), 16),
    "naive": (lambda: shallow(learning="naive"), 16),
    "local": (lambda: shallow(mask="local"), 16),
    "none": (lambda: shallow(mask="none"), 16),
    "size 24": (shallow, 24),
    "resnet": (lambda: get_resnet_cifar(10, 20), 16),
    "imagenet": (lambda: AttentionNet(10, (1, 1, 1), (1, 1, 1)), 64),
}


@needs_bfloat16
@pytest.mark.parametrize("name", NETWORKS)
def test_logits_and_gradients_are_nearly_float32s(name):
    make, size = NETWORKS[name]
    _, expected, true = passed(make, size, "float32")
    net, logits, gradients = passed(make, size, "bfloat16")
    for array in [logits, *gradients.values(), *(p.data() for p in net.collect_params().values())]:
        assert array.dtype == np.float32
    assert (logits - expected).norm().asscalar() < 0.05 * expected.norm().asscalar()
    norms = {name: gradient.norm().asscalar() for name, gradient in true.items()}
    # the others are zero but for rounding: of what a normalization takes away again
    seen = [name for name, norm in norms.items() if norm > 1e-3 * max(norms.values())]
    assert len(seen) > 30
    cosines = []
    for name in seen:
        length = gradients[name].norm().asscalar()
        assert 0.7 < length / norms[name] < 1.4, name
        cosines.append((gradients[name] * true[name]).sum().asscalar() / length / norms[name])
    assert min(cosines) > 0.7 and np.median(cosines) > 0.9


@needs_bfloat16
def test_the_form_for_amx_gives_the_same_numbers_to_the_bit(monkeypatch):
    # by this processor's kernels: what it is for can be seen on a processor with AMX alone
    net, logits, gradients = passed(shallow, 16, "bfloat16")
    form = Counter(node["op"] for node in graph(net))
    monkeypatch.setenv(runtime.ISA_VARIABLE, runtime.AMX_ISA)
    net, others, other_gradients = passed(shallow, 16, "bfloat16")
    assert Counter(node["op"] for node in graph(net)) != form
    np.testing.assert_array_equal(logits.asnumpy(), others.asnumpy())
    for name, gradient in gradients.items():
        np.testing.assert_array_equal(gradient.asnumpy(), other_gradients[name].asnumpy())


def test_the_islands_of_float32_lie_between_casts_and_copying_convolutions():
    # on any processor: only to compute is a matter of its instructions
    net = shallow()
    hybridize(net, bfloat16=True)
    nodes = graph(net, casts=True)
    convolutions = [node for node in nodes if node["op"] == "Convolution"]
    weights = [nodes[node["inputs"][1][0]]["op"] for node in convolutions]
    assert weights[0] == "null" and set(weights[1:]) == {"amp_cast"}, "the stem alone computes in float32"
    copies = [node for node in convolutions if int(node["attrs"]["num_group"]) > 1]
    stem, upsamples, modules = 1, 3 + 2 + 1, 3
    assert len(copies) == stem + 2 * upsamples + 3 * modules


def test_only_who_asks_for_it_gets_it():
    assert not any(node["op"] == "amp_cast" for node in graph(passed(shallow, 16, "float32")[0], casts=True))


@needs_bfloat16
def test_classification_is_nearly_float32s_and_leaves_the_statistics_alone():
    images = mx.nd.random.normal(shape=(8, 3, 16, 16))
    outputs = {}
    for bfloat16 in (False, True):
        mx.random.seed(1)
        net = shallow()
        net.initialize(mx.init.MSRAPrelu("in", 0))
        with autograd.train_mode():
            net(images).wait_to_read()  # statistics that are some images'
        mx.nd.waitall()
        before = {name: p.data().asnumpy() for name, p in net.collect_params(".*running").items()}
        hybridize(net, static=False, inference=True, bfloat16=bfloat16)
        outputs[bfloat16] = net(images).asnumpy()
        np.testing.assert_array_equal(net(images).asnumpy(), outputs[bfloat16])
        for name, value in before.items():
            np.testing.assert_array_equal(net.collect_params()[name].data().asnumpy(), value)
    error = np.linalg.norm(outputs[True] - outputs[False]) / np.linalg.norm(outputs[False])
    assert 0 < error < 0.1


@needs_bfloat16
def test_what_a_network_attends_to_is_float32_for_its_reader():
    net = passed(shallow, 16, "bfloat16")[0]
    for maps in net.attention_masks(mx.nd.ones((1, 3, 16, 16))).values():
        assert all(array.asnumpy().dtype == np.float32 for array in maps)


def two_steps(memory_saving, devices):
    """The losses of two steps, and all that a training goes on from at the end."""
    group = SingleProcess([mx.cpu(device) for device in range(devices)])
    mx.random.seed(1)
    net = initialize(shallow(), group.devices, mx.init.MSRAPrelu(), "bfloat16", memory_saving=memory_saving)
    trainer = group.trainer(net.collect_params(), "nag", {"momentum": 0.9})
    forward = Recomputation(net) if memory_saving else net
    losses, state = [], TrainingState(net, trainer, group)
    for seed in range(2):
        losses += train_step(forward, trainer, mixed_shares(16, devices, seed), group)[1]
    return [*(loss.asnumpy() for loss in losses), *state.gather(state.statistics()).values()]


@needs_bfloat16
@pytest.mark.parametrize("devices", [1, 2])
def test_saving_memory_changes_no_bit(devices):
    for one, other in zip(two_steps(False, devices), two_steps(True, devices)):
        np.testing.assert_array_equal(one, other)


# The runs


def test_another_precision_is_said():
    assert other_precision(True, True) is None
    assert other_precision(False, True) == (
        "computing in bfloat16, and until here in float32: the numbers are others from here on"
    )


@needs_bfloat16
def test_a_run_goes_on_to_the_bit_and_one_of_float32_may_go_on_in_bfloat16(tmp_path, digits):
    def train(*flags):
        process = train_on_digits(tmp_path, digits, *flags)
        assert process.returncode == 0, process.stderr
        return process.stdout

    def parameters(name):
        loaded = mx.nd.load(str(tmp_path / "params" / name / "last.params"))
        assert all(value.dtype == np.float32 for value in loaded.values())
        return {key: value.asnumpy().tobytes() for key, value in loaded.items()}

    train("--run-name", "whole", "--epochs", 2, "--bfloat16", "--ema", 0.9)
    train("--run-name", "run", "--epochs", 1, "--bfloat16", "--ema", 0.9)
    assert "float32" not in train("--resume", "run", "--epochs", 2)
    assert parameters("run") == parameters("whole")
    train("--run-name", "full", "--epochs", 1)
    assert "computing in bfloat16, and until here in float32" in train("--resume", "full", "--epochs", 2, "--bfloat16")

    params = tmp_path / "params/run/last.params"
    sets = ("--dataset", "digits", "--data-dir", digits.records["train"].parents[2])
    evaluate = ("--eval-only", "--params", params, "--limit", 24, "--out", tmp_path, *sets)
    evaluated = run_script("cifar10_train.py", *evaluate, "--bfloat16")
    assert evaluated.returncode == 0 and "accuracy" in evaluated.stdout, evaluated.stderr
    predicted = run_script("-m", "scripts.predict", "--params", params, ROOT / "docs/digits-loss.png", "--bfloat16")
    assert predicted.returncode == 0 and predicted.stdout.startswith(str(ROOT / "docs")), predicted.stderr


@pytest.mark.parametrize("command", [("cifar10_train.py",), ("imagenet_train.py",), ("-m", "scripts.predict", "docs")])
def test_scripts_ask_before_they_compute_in_it(tmp_path, command):
    place = () if command[0] == "-m" else ("--data-dir", tmp_path, "--log-dir", tmp_path)
    environ = {**os.environ, runtime.ISA_VARIABLE: "AVX2"}
    assert_refused(run_script(*command, *place, "--bfloat16", env=environ), "--bfloat16")
