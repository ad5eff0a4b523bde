"""The networks are the paper's: sizes, structure, and the same numbers in every form."""

import json
from collections import Counter

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd, gluon
from mxnet.gluon import nn

from model import (
    AttentionNet,
    AttentionNetCifar,
    attention_net_spec,
    get_attention_cifar,
    get_attention_net,
    get_resnet_cifar,
    units,
)
from model.attention import AttentionModule, AttentionVariant, attentions, learnings, masks
from model.onednn import forget_graph, hybridize
from model.plain import make_plain
from model.summary import multiply_adds, trainable_parameters
from model.units import NormReLU, PreActivationBottleneck, ResNeXtUnit, SqueezeExcitation, start_as_shortcuts
from model.upsample import Upsample

SIZES = [
    (get_attention_net, "bottleneck", 1000, 56, 224, 31_810_728, 6.271),
    (get_attention_net, "bottleneck", 1000, 92, 224, 52_466_344, 10.534),
    (get_attention_net, "resnext", 1000, 56, 224, 31_318_824, 6.419),
    (get_attention_cifar, "bottleneck", 10, 56, 32, 7_467_370, 0.503),
    (get_attention_cifar, "bottleneck", 10, 92, 32, 12_646_506, 0.851),
]


@pytest.mark.parametrize("get_net, unit, classes, depth, size, parameters, giga_multiply_adds", SIZES)
def test_sizes_are_exactly_the_published_ones(get_net, unit, classes, depth, size, parameters, giga_multiply_adds):
    net = get_net(classes, depth, unit=units[unit])
    assert trainable_parameters(net) == parameters
    assert round(multiply_adds(net, (1, 3, size, size)) / 1e9, 3) == giga_multiply_adds


def test_the_spec_names_the_papers_networks():
    assert {depth: (spec.ptr, spec.modules) for depth, spec in attention_net_spec.items()} == {
        56: ([1, 2, 1], [1, 1, 1]),
        92: ([1, 2, 1], [1, 2, 3]),
        128: ([1, 2, 1], [3, 3, 3]),
        164: ([1, 2, 1], [4, 4, 4]),
        236: ([1, 2, 1], [6, 6, 6]),
        452: ([2, 4, 3], [6, 6, 6]),
    }


def test_an_unknown_depth_is_refused():
    with pytest.raises(ValueError, match="57.*56, 92, 128, 164, 236, 452"):
        get_attention_cifar(10, 57)


def operators(net):
    """How often each operator stands in the network's graph; activations also by their kind."""
    nodes = json.loads(net(mx.sym.var("data")).tojson())["nodes"]
    counted = Counter(node["op"] for node in nodes)
    counted.update(("Activation", node["attrs"]["act_type"]) for node in nodes if node["op"] == "Activation")
    return counted


@pytest.mark.parametrize("depth", attention_net_spec)
def test_masks_pool_three_two_and_one_times_and_end_in_a_sigmoid(depth):
    modules = attention_net_spec[depth].modules
    pools = sum(count * levels for count, levels in zip(modules, (3, 2, 1)))
    counted = operators(get_attention_cifar(10, depth))
    assert counted["Activation", "sigmoid"] == sum(modules)
    assert counted["Pooling"] == pools + 1  # and the global one
    assert operators(get_attention_net(10, depth))["Pooling"] == pools + 2  # and the stem's


def shallow(network, classes=10, unit=PreActivationBottleneck):
    """The network of its family with one attention module in each stage and one unit wherever there are some."""
    return network(classes, (1, 1, 1), (1, 1, 1), unit=unit)


def initialized(net, dtype="float32"):
    mx.random.seed(3)
    net.initialize(mx.init.MSRAPrelu(factor_type="in", slope=0))
    net.cast(dtype)
    return net


def outputs_and_gradients(net, images):
    """The logits, and the gradient of their weighted sum by every trainable parameter, as numpy arrays."""
    net.collect_params().zero_grad()
    with autograd.record():
        logits = net(images)
        total = (logits * mx.nd.arange(logits.size, dtype=images.dtype).reshape(logits.shape)).sum()
    total.backward()
    gradients = [p.grad().asnumpy() for p in net.collect_params().values() if p.grad_req != "null"]
    return logits.asnumpy(), gradients


def relative_difference(one, other):
    return np.abs(one - other).max() / max(np.abs(other).max(), 1e-12)


@pytest.mark.parametrize("depth", attention_net_spec)
def test_every_depth_runs_forward_and_backward(depth):
    net = initialized(get_attention_cifar(7, depth))
    logits, gradients = outputs_and_gradients(net, mx.nd.random.normal(shape=(2, 3, 16, 16)))
    assert logits.shape == (2, 7)
    assert all(np.isfinite(gradient).all() and gradient.any() for gradient in gradients)


@pytest.mark.parametrize("network, size", [(AttentionNet, 64), (AttentionNetCifar, 32)])
def test_hybridized_and_imperative_agree(network, size):
    net = initialized(shallow(network), "float64")  # dozens of normalizations amplify float32's rounding
    images = mx.nd.random.normal(shape=(2, 3, size, size), dtype="float64")
    logits, gradients = outputs_and_gradients(net, images)
    net.hybridize(static_alloc=True, static_shape=True)
    hybrid_logits, hybrid_gradients = outputs_and_gradients(net, images)
    assert relative_difference(hybrid_logits, logits) < 1e-6
    assert max(map(relative_difference, hybrid_gradients, gradients)) < 1e-6


@pytest.mark.parametrize("network, sizes", [(AttentionNet, (224, 320, 64)), (AttentionNetCifar, (32, 64, 40))])
def test_one_network_takes_any_size_its_strides_allow(network, sizes):
    net = initialized(shallow(network))
    batches = [mx.nd.random.normal(shape=(1, 3, size, size)) for size in sizes]
    imperative = [net(images).asnumpy() for images in batches]
    net.hybridize(static_alloc=True, static_shape=True)
    for images, expected in zip(batches * 2, imperative * 2):
        np.testing.assert_allclose(net(images).asnumpy(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("source, target", [((4, 4), (8, 8)), ((3, 5), (7, 9)), ((1, 1), (2, 2)), ((1, 2), (1, 3)),
                                            ((14, 14), (28, 28)), ((10, 10), (19, 20))])  # fmt: skip
@pytest.mark.parametrize("separable", [False, True])
@pytest.mark.parametrize("hybrid", [False, True])
def test_upsampling_is_bilinear_with_aligned_corners(source, target, separable, hybrid):
    upsample = Upsample(3, separable)
    upsample.hybridize(hybrid)
    maps = mx.nd.random.normal(shape=(2, 3, *source))
    like = mx.nd.zeros((2, 3, *target))
    weights = mx.nd.random.normal(shape=(2, 3, *target))

    def output_and_gradient(function):
        maps.attach_grad()
        with autograd.record():
            output = function(maps, like)
            total = (output * weights).sum()
        total.backward()
        return output.asnumpy(), maps.grad.asnumpy()

    output, gradient = output_and_gradient(upsample)
    plain, plain_gradient = output_and_gradient(lambda x, y: mx.nd.contrib.BilinearResize2D(x, y, mode="like"))
    np.testing.assert_allclose(output, plain, atol=1e-5)
    assert relative_difference(gradient, plain_gradient) < 1e-4


class Framed(nn.HybridBlock):
    """Layers between two convolutions, as they stand in a network: their maps come and go in oneDNN's layout."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.HybridSequential()
        self.layers.add(nn.Conv2D(64, 3, padding=1, in_channels=3), *layers, nn.Conv2D(16, 1, in_channels=64))

    def hybrid_forward(self, F, x):
        return self.layers(x)


FRAMED = {
    "units": lambda: [PreActivationBottleneck(64, 64) for _ in range(2)],
    "unit with a projection": lambda: [PreActivationBottleneck(64, 64, stride=2)],
    "units too narrow for blocks": lambda: [PreActivationBottleneck(32, 64), PreActivationBottleneck(64, 32)],
    "attention module": lambda: [AttentionModule(3, 64, (1, 2, 1), PreActivationBottleneck)],
    "attention modules in a row": lambda: [
        AttentionModule(1, 64, (1, 2, 1), PreActivationBottleneck) for _ in range(2)
    ],
    "a product before a unit": lambda: [nn.HybridLambda(lambda F, x: x * (x + 1)), PreActivationBottleneck(64, 64)],
}


VARIANTS = [
    AttentionVariant(learning="naive"),
    AttentionVariant(attention="channel"),
    AttentionVariant(attention="spatial"),
    AttentionVariant(mask="local"),
    AttentionVariant(mask="none"),
]

for variant in VARIANTS:
    FRAMED[" ".join(variant)] = lambda variant=variant: [
        AttentionModule(2, 64, (1, 2, 1), PreActivationBottleneck, variant)
    ]


def slow(value):
    """A parameter that the quick tests leave out."""
    return pytest.param(value, marks=pytest.mark.slow)


class AwayFromKinks(NormReLU):
    """Moves every channel's beta to where zero lies amid the nearest gap between the channel's values.

    A value as near the kink of ReLU as this is far from it is on the same side in every form of a network.
    """

    margin = 5e-4

    def hybrid_forward(self, F, x, gamma, beta, **statistics):
        normalized = nn.BatchNorm.hybrid_forward(self, F, x, gamma, beta, **statistics)
        values = np.sort(normalized.asnumpy().swapaxes(0, 1).reshape(len(beta), -1))
        middles = (values[:, 1:] + values[:, :-1]) / 2
        distances = np.where(np.diff(values) > 2 * self.margin, np.abs(middles), np.inf)
        beta -= mx.nd.array(np.take_along_axis(middles, distances.argmin(axis=1)[:, np.newaxis], axis=1).ravel())
        return super().hybrid_forward(F, x, gamma, beta, **statistics)


def away_from_kinks(net, images):
    """Give an initialized network betas by which no value, of these images, is near the kink of a ReLU. Returns it."""

    def exchange(found, other):
        net.apply(lambda block: setattr(block, "__class__", other) if type(block) is found else None)

    exchange(NormReLU, AwayFromKinks)
    with autograd.train_mode():
        net(images)
    exchange(AwayFromKinks, NormReLU)
    return net


def with_parameters_of(other, net):
    """Give an initialized network another's parameters. Returns it."""
    for source, target in zip(other.collect_params().values(), net.collect_params().values()):
        target.set_data(source.data())
    mx.nd.waitall()  # batch normalization changes its statistics without the engine knowing
    return net


@pytest.mark.parametrize("seed", [0, slow(1)])
@pytest.mark.parametrize("name", FRAMED)
@pytest.mark.parametrize("size", [slow((32, 32)), (17, 22), slow((16, 16))])
def test_the_fast_form_gives_the_plain_forms_outputs_and_gradients(name, size, seed):
    mx.random.seed(seed)
    images = mx.nd.random.normal(shape=(2, 3, *size))
    plain = away_from_kinks(make_plain(initialized(Framed(*FRAMED[name]()))), images)
    fast = with_parameters_of(plain, initialized(Framed(*FRAMED[name]())))
    plain.hybridize(static_alloc=True, static_shape=True)
    hybridize(fast)
    logits, gradients = outputs_and_gradients(plain, images)
    fast_logits, fast_gradients = outputs_and_gradients(fast, images)
    assert relative_difference(fast_logits, logits) < 1e-5
    assert max(map(relative_difference, fast_gradients, gradients)) < 1e-4


def test_a_whole_fused_network_gives_the_plain_ones_first_output():
    images = mx.nd.random.normal(shape=(4, 3, 32, 32))
    plain = make_plain(initialized(shallow(AttentionNetCifar)))
    fast = initialized(shallow(AttentionNetCifar))
    hybridize(fast)
    counted = operators(fast)
    assert counted["_contrib_BatchNormWithReLU"] == operators(plain)["BatchNorm"] and not counted["BatchNorm"]
    assert relative_difference(fast(images).asnumpy(), plain(images).asnumpy()) < 1e-5


@pytest.mark.parametrize("name", FRAMED)
@pytest.mark.parametrize("size", [(32, 32), (17, 22), (16, 16)])
def test_folding_gives_the_plain_forms_outputs(name, size):
    images = mx.nd.random.normal(shape=(2, 3, *size))
    plain = used_to(images, make_plain(initialized(Framed(*FRAMED[name]()))))
    fast = with_parameters_of(plain, initialized(Framed(*FRAMED[name]())))
    hybridize(fast, inference=True)
    assert relative_difference(fast(images).asnumpy(), plain(images).asnumpy()) < 1e-5


@pytest.mark.parametrize("unit", units)
def test_folding_gives_a_whole_plain_networks_outputs(unit, tmp_path):
    images = mx.nd.random.normal(shape=(4, 3, 32, 32))
    plain = used_to(images, make_plain(initialized(shallow(AttentionNetCifar, unit=units[unit]))))
    fast = with_parameters_of(plain, initialized(shallow(AttentionNetCifar, unit=units[unit])))
    hybridize(fast, inference=True)
    # A scaled weight rounds otherwise than a scaled map, and dozens of layers add it up.
    assert relative_difference(fast(images).asnumpy(), plain(images).asnumpy()) < 1e-4
    fast.export(str(tmp_path / "net"))
    assert ("_sg_mkldnn_conv" in (tmp_path / "net-symbol.json").read_text()) == (unit != "se")


def used_to(images, net):
    """Give the normalizations of a network the statistics of images, as a trained one has them. Returns it."""
    for _ in range(5):
        outputs_and_gradients(net, images)
    return net


def test_a_forgotten_graph_is_made_anew_from_the_parameters_as_they_are():
    images = mx.nd.random.normal(shape=(2, 3, 16, 16))
    net, other = (initialized(Framed(*FRAMED["units"]())) for _ in range(2))
    hybridize(net, inference=True)
    net(images)
    for _ in range(2):
        for parameter in other.collect_params().values():
            parameter.set_data(1.5 * parameter.data() + 0.01)
        with_parameters_of(other, net)
        forget_graph(net)
        assert relative_difference(net(images).asnumpy(), other(images).asnumpy()) < 1e-5


def test_an_attention_module_is_one_plus_mask_times_trunk():
    module = initialized(AttentionModule(1, 8, (1, 2, 1), PreActivationBottleneck))
    images = mx.nd.random.normal(shape=(1, 8, 8, 8))
    before = module.before(images)
    mask, trunk = module.mask(before), module.trunk(before)
    assert mask.min().asscalar() > 0 and mask.max().asscalar() < 1
    expected = module.after(trunk + mask * trunk)
    np.testing.assert_allclose(module(images).asnumpy(), expected.asnumpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("learning", learnings)
@pytest.mark.parametrize("attention", attentions)
def test_an_attention_module_follows_its_variant(attention, learning):
    module = initialized(
        AttentionModule(2, 8, (1, 2, 1), PreActivationBottleneck, AttentionVariant(attention, learning))
    )
    images = mx.nd.random.normal(shape=(1, 8, 8, 8))
    before = module.before(images)
    mask = attentions[attention](mx.nd, module.mask.logits(before))
    expected = module.after(learnings[learning](mask, module.trunk(before)))
    np.testing.assert_allclose(module(images).asnumpy(), expected.asnumpy(), rtol=1e-5, atol=1e-5)


def test_half_precision_leaves_normalization_and_interpolation_shares_exact():
    net = shallow(AttentionNetCifar)
    net.initialize()
    net.cast("float16")
    for name, parameter in net.collect_params().items():
        is_norm = name.endswith(("gamma", "beta", "mean", "var"))
        assert np.dtype(parameter.dtype) == ("float32" if is_norm else "float16"), name
    upsample = Upsample(1, separable=False)
    upsample.cast("float16")
    shares = upsample.row_and_column_matrices(mx.nd, mx.nd.zeros((1, 1, 3, 3)), mx.nd.zeros((1, 1, 57, 57)))
    assert all(share.dtype == np.float16 for share in shares)


def test_attention_inception_is_about_as_large_as_the_papers():
    net = get_attention_net(1000, 56, unit=units["inception"])
    assert trainable_parameters(net) == pytest.approx(31.9e6, rel=0.01)
    assert multiply_adds(net, (1, 3, 224, 224)) == pytest.approx(6.3e9, rel=0.01)


@pytest.mark.parametrize("network, size", [(AttentionNet, 64), (AttentionNetCifar, 16)])
@pytest.mark.parametrize("unit", units)
def test_every_unit_makes_a_network_that_learns(unit, network, size):
    net = initialized(shallow(network, 4, units[unit]))
    hybridize(net)
    images, labels = mx.nd.random.normal(shape=(4, 3, size, size)), mx.nd.arange(4)
    # The classifier stays as it is: it could learn so few images by heart from any features.
    learning = net.features.collect_params()
    trainer = gluon.Trainer(learning, "sgd", {"learning_rate": 0.05})
    losses = []
    for _ in range(7):
        with autograd.record():
            loss = gluon.loss.SoftmaxCrossEntropyLoss()(net(images), labels)
        loss.backward()
        trainer.step(4)
        losses.append(loss.mean().asscalar())
        gradients = [parameter.grad().asnumpy() for parameter in learning.values() if parameter.grad_req != "null"]
        assert all(np.isfinite(gradient).all() and gradient.any() for gradient in gradients)
    assert losses[0] > 1 and losses[-1] < 0.1 * losses[0]


@pytest.mark.parametrize("unit", units)
@pytest.mark.parametrize("in_channels, stride", [(128, 1), (64, 1), (64, 2), (128, 2)])
def test_units_change_channels_and_size_as_asked(unit, in_channels, stride):
    block = initialized(units[unit](128, in_channels, stride))
    assert block(mx.nd.random.normal(shape=(2, in_channels, 9, 12))).shape == (2, 128, -(-9 // stride), 12 // stride)


def test_the_resnext_unit_is_a_grouped_bottleneck_with_relu_after_the_sum():
    unit = initialized(ResNeXtUnit(128, 64, stride=2))
    operations = json.loads(unit(mx.sym.var("data")).tojson())["nodes"]
    convolutions = [node["attrs"] for node in operations if node["op"] == "Convolution"]
    assert [(c["num_filter"], c["kernel"], c["stride"], c["num_group"]) for c in convolutions] == [
        ("64", "(1, 1)", "(1, 1)", "1"),
        ("64", "(3, 3)", "(2, 2)", "32"),
        ("128", "(1, 1)", "(1, 1)", "1"),
        ("128", "(1, 1)", "(2, 2)", "1"),
    ]
    assert Counter(node["op"] for node in operations)["BatchNorm"] == 4
    images = mx.nd.random.normal(shape=(2, 64, 8, 8))
    expected = mx.nd.relu(unit.branch(images) + unit.projection(images))
    np.testing.assert_array_equal(unit(images).asnumpy(), expected.asnumpy())
    assert unit(images).min().asscalar() == 0


@pytest.mark.parametrize("unit", units)
def test_what_is_activated_already_is_not_activated_again(unit):
    """Masks and the classifier of post-activation networks begin without BN and ReLU, as the authors' do."""
    block = units[unit]
    net = get_attention_cifar(10, 56, unit=block)
    modules = [child for child in net.features if isinstance(child, AttentionModule)]
    layers = [[type(layer).__name__ for layer in module.mask.head] for module in modules]
    before_pooling = net.features[-3]
    if block.activated:
        assert layers == [["Conv2D", "NormReLU", "Conv2D"]] * 3
        assert isinstance(before_pooling[-1], block)
    else:
        assert layers == [["NormReLU", "Conv2D", "NormReLU", "Conv2D"]] * 3
        assert isinstance(before_pooling, NormReLU)


def test_squeeze_and_excitation_weighs_whole_channels():
    gate = initialized(SqueezeExcitation(512))
    images = mx.nd.random.uniform(1, 2, shape=(2, 512, 5, 5))
    shares = (gate(images) / images).asnumpy()
    assert (np.ptp(shares, axis=(2, 3)) < 1e-6).all() and 0 < shares.min() < shares.max() < 1


@pytest.mark.parametrize("unit", units)
def test_units_that_start_as_their_shortcut_still_learn(unit):
    block = units[unit](64, 64)
    start_as_shortcuts(block)
    initialized(block)
    images = mx.nd.random.normal(shape=(2, 64, 8, 8))
    expected = mx.nd.relu(images) if block.activated else images
    np.testing.assert_array_equal(block(images).asnumpy(), expected.asnumpy())
    outputs_and_gradients(block, images)
    assert np.abs(block.last_scale.grad().asnumpy()).max() > 0


def test_every_unit_of_a_network_can_start_as_its_shortcut():
    net = get_attention_cifar(10, 56, unit=ResNeXtUnit)
    start_as_shortcuts(net)
    initialized(net)
    gammas = [p.data().asnumpy() for name, p in net.collect_params(".*gamma").items()]
    assert sum(not gamma.any() for gamma in gammas) == 3 + 3 * 4 + (8 + 5 + 2) + 3  # stages, trunks, masks, the end


def test_attention_functions_are_those_of_section_3_3():
    x = np.random.default_rng(0).normal(1, 3, (2, 5, 4, 3)).astype(np.float32)
    found = {name: function(mx.nd, mx.nd.array(x)).asnumpy() for name, function in attentions.items()}
    centred = x - x.mean(axis=(2, 3), keepdims=True)
    expected = {
        "mixed": 1 / (1 + np.exp(-x)),
        "channel": x / np.linalg.norm(x, axis=1, keepdims=True),
        "spatial": 1 / (1 + np.exp(-centred / x.std(axis=(2, 3), keepdims=True))),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=1e-5)


@pytest.mark.parametrize("name", attentions)
def test_attention_functions_hold_in_half_precision(name):
    """A sum of squares over 56x56 positions or 2,048 channels would pass float16's largest number."""
    x = mx.nd.random.normal(3, 12, shape=(1, 2048, 8, 8) if name == "channel" else (1, 8, 56, 56), ctx=mx.cpu())
    half, single = attentions[name](mx.nd, x.astype("float16")), attentions[name](mx.nd, x)
    assert half.dtype == np.float16
    np.testing.assert_allclose(half.asnumpy(), single.asnumpy(), atol=5e-3)


def test_learnings_join_mask_and_trunk_as_equations_1_and_3():
    assert learnings["residual"](0.25, 8.0) == 10 and learnings["naive"](0.25, 8.0) == 2


def trainable(net):
    return sum(np.prod(p.shape) for p in net.collect_params().values() if p.grad_req != "null")


def test_a_local_mask_has_the_hourglasss_parameters_and_none_has_none():
    names = {
        mask: list(get_attention_cifar(10, 56, variant=AttentionVariant(mask=mask))._collect_params_with_prefix())
        for mask in masks
    }
    assert names["local"] == names["hourglass"]
    local = operators(get_attention_cifar(10, 56, variant=AttentionVariant(mask="local")))
    assert local["Pooling"] == 1, "the global one"
    assert local["Activation", "sigmoid"] == 3
    assert names["none"] == [name for name in names["hourglass"] if ".mask." not in name]


def test_modules_of_a_stage_may_be_other_than_the_specs():
    net = get_attention_cifar(10, 92, modules=[2, 2, 2])
    assert sum(isinstance(block, AttentionModule) for block in net.features) == 6
    assert trainable(net) == 10_686_570  # computed here


@pytest.mark.parametrize("layers, classes, parameters", [(164, 10, 1_703_258), (164, 100, 1_726_388)])
def test_resnet_164_has_its_published_size(layers, classes, parameters):
    """The figures are those of the common implementations, 1.7 M in arXiv 1603.05027."""
    assert trainable(get_resnet_cifar(classes, layers)) == parameters


def test_resnet_164_halves_the_map_in_its_later_stages():
    net = get_resnet_cifar(10, 164)
    assert multiply_adds(net, (1, 3, 32, 32)) == 247_646_720  # counted by hand from its spec


def test_resnet_takes_small_images():
    net = initialized(get_resnet_cifar(10, 11))
    assert net(mx.nd.ones((2, 3, 32, 32))).shape == (2, 10)


@pytest.mark.parametrize("layers", [10, 12, 93, 2, 1, 0])
def test_no_resnet_of_another_number_of_layers(layers):
    with pytest.raises(ValueError, match="9 n"):
        get_resnet_cifar(10, layers)
