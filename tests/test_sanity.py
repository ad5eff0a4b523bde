"""What must hold of a network and its training before any figure is worth a look."""

import math

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd

from data.loader import Loader, LoaderOptions
from model import AttentionNetCifar, get_attention_cifar
from model.attention import AttentionModule, AttentionVariant
from scripts.signal_by_depth import mean_signal
from training.distributed.process_group import SingleProcess
from training.learner import INITIALIZER, Learner, initialize, train_step
from training.metrics import target_loss

CLASSES = 10


@pytest.fixture
def narrow(monkeypatch):
    """Attention networks for 32x32 images at an eighth of their width."""
    monkeypatch.setattr(AttentionNetCifar, "stem_channels", 4)
    monkeypatch.setattr(AttentionNetCifar, "channels", (16, 32, 64, 128))


@pytest.fixture
def batch(digits):
    """64 digits: images, and targets (64, 10)."""
    found = next(Loader(digits, "train", LoaderOptions(64, seed=1), mx.cpu(), training=True).epoch(0))
    return found.images, found.labels.one_hot(CLASSES)


def halved(images):
    """Images of half the size, which are faster."""
    return images[:, :, ::2, ::2]


def test_one_batch_is_learnt_by_heart(narrow, batch):
    mx.random.seed(1)
    group = SingleProcess([mx.cpu()])
    net = initialize(get_attention_cifar(CLASSES, 56), group.devices, INITIALIZER)
    trainer = group.trainer(net.collect_params(), "nag", {"learning_rate": 0.05, "momentum": 0.9})
    images, targets = batch
    small = halved(images)
    for _ in range(120):
        _, (losses,) = train_step(net, trainer, [(small, targets)], group)
    assert losses.mean().asscalar() < 0.01
    assert losses.max().asscalar() < 0.1


def test_a_new_network_knows_nothing(batch):
    """Its loss is that of guessing, log K, and half the variance that He's rule for the classifier gives its logits."""
    images, targets = batch
    for seed in range(2):
        mx.random.seed(seed)
        net = initialize(get_attention_cifar(CLASSES, 56), [mx.cpu()], INITIALIZER)
        with autograd.train_mode():
            output = net(images)
        loss, variance = target_loss(output, targets).mean().asscalar(), output.asnumpy().var(axis=1).mean()
        assert abs(loss - math.log(CLASSES)) < 0.1 * math.log(CLASSES)
        assert loss == pytest.approx(math.log(CLASSES) + variance / 2, rel=0.05)


def accuracy_after_training(digits, noise, epochs=4):
    """Of test images of 16x16, when the share ``noise`` of the training images has a wrong label."""
    group = SingleProcess([mx.cpu()])
    optimizer = "nag", {"learning_rate": 0.03, "momentum": 0.9}
    learner = Learner(lambda: get_attention_cifar(CLASSES, 56), group, optimizer, seed=1)
    train = Loader(digits, "train", LoaderOptions(32, seed=1, label_noise=noise), mx.cpu(), training=True)
    for epoch in range(epochs):
        for found in train.epoch(epoch):
            batch = halved(found.images), found.labels.one_hot(CLASSES)
            train_step(learner.net, learner.trainer, [batch], group)
    learner.update_evaluation_nets()
    test = Loader(digits, "test", LoaderOptions(60, seed=1), mx.cpu(), training=False)
    right = sum(
        (learner.evaluation_net(halved(found.images)).argmax(axis=1) == found.labels)[: found.count].sum().asscalar()
        for found in test.epoch(0)
    )
    assert test.num_images == 360
    return right / test.num_images


def test_labels_at_random_teach_nothing(narrow, digits):
    """Nine wrong labels in ten are labels at random, with ten classes; of 360 images, chance deviates by 0.016."""
    assert 0.03 < accuracy_after_training(digits, noise=1 - 1 / CLASSES) < 0.2
    assert accuracy_after_training(digits, noise=0) > 0.4


def test_masks_learn_by_every_path(narrow, batch):
    """Of a loss that sees only the masks, the image and every parameter of every mask branch have a gradient."""
    mx.random.seed(1)
    net = get_attention_cifar(CLASSES, 92)
    net.initialize(INITIALIZER)
    images = batch[0][:8].copy()
    images.attach_grad()
    modules = [block for block in net.features if isinstance(block, AttentionModule)]
    assert len(modules) == 6
    for module in modules:
        for parameter in net.collect_params().values():
            if parameter.grad_req != "null":
                parameter.zero_grad()
        with autograd.record():
            features = images
            for block in net.features:
                if block is module:
                    break
                features = block(features)
            mask = module.mask(module.before(features))
        draw = mx.nd.random.normal(shape=mask.shape)
        mask.backward(draw)
        assert abs(images.grad).sum().asscalar() > 0
        for name, parameter in module.mask.collect_params().items():
            if parameter.grad_req != "null":
                assert abs(parameter.grad()).max().asscalar() > 0, name


def stopping(block):
    """A class of blocks as this one, which let no gradient through."""

    class Stopping(type(block)):
        def forward(self, *inputs):
            return 0 * super().forward(*inputs)  # by BlockGrad and detach, MXNet 1.9.1 crashes here

    return Stopping


def test_the_image_learns_from_a_mask_by_each_path_alone(narrow, batch, monkeypatch):
    """Down and up, and by the skip unit at each level, while the other paths are closed."""
    mx.random.seed(1)
    net = get_attention_cifar(CLASSES, 56)
    net.initialize(INITIALIZER)
    features = batch[0][:2].copy()
    for block in net.features:
        if isinstance(block, AttentionModule):
            break
        features = block(features)
    features.attach_grad()
    outer = block.mask.hourglass
    ends = outer.skip, outer.inner.skip, outer.inner.inner  # what is added at each level, and the lowest level
    assert ends[-1].inner is None
    for way in (*ends, None):
        with monkeypatch.context() as patch:
            for end in ends:
                if end is not way:
                    patch.setattr(end, "__class__", stopping(end))
            with autograd.record():
                mask = block.mask(features)
            mask.backward(mx.nd.random.normal(shape=mask.shape))
        found = abs(features.grad).sum().asscalar()
        assert found > 0 if way is not None else found == 0


def test_naive_attention_weakens_the_signal_with_depth_and_residual_attention_does_not(narrow):
    naive, residual = (
        [mean_signal(get_attention_cifar, learning, count, range(3)) for count in (1, 6)]
        for learning in ("naive", "residual")
    )
    assert naive[1] < 0.9 * naive[0]
    assert residual[1] > 0.93 * residual[0]


def test_naive_masks_halve_what_passes_a_module(narrow, batch):
    mx.random.seed(1)
    sizes = {}
    for learning in ("naive", "residual"):
        net = get_attention_cifar(CLASSES, 56, variant=AttentionVariant(learning=learning))
        net.initialize(INITIALIZER)
        with autograd.train_mode():
            for maps in net.attention_masks(batch[0][:8]).values():
                ratio = abs(maps.output).mean().asscalar() / abs(maps.trunk).mean().asscalar()
                sizes.setdefault(learning, []).append(ratio)
    np.testing.assert_allclose(sizes["naive"], 0.5, atol=0.12)
    np.testing.assert_allclose(sizes["residual"], 1.5, atol=0.12)
