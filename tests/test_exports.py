"""Which parameters are kept for use elsewhere, and under which names."""

import mxnet as mx
from mxnet.gluon import nn

from data.dataset import Dataset
from training.network_file import describe, read_description
from training.run.exports import Exports

DIGITS = Dataset("digits", 2, {}, 32, (0.0,) * 3, (1.0,) * 3, mirror=False)
DESCRIPTION = describe(DIGITS, "cifar", 56, "bottleneck")


def test_the_last_the_best_and_every_so_many_epochs_are_kept(tmp_path):
    net = nn.Dense(1, in_units=1, use_bias=False)
    net.initialize()
    exports = Exports(tmp_path, 2, DESCRIPTION)
    for epoch, best_epoch in enumerate([1, 2, 2, 2, 2], start=1):
        net.weight.set_data(mx.nd.full((1, 1), epoch))
        exports.save(net, epoch, best_epoch, epoch / 10)
    kept = {file.name: mx.nd.load(str(file))["weight"].asscalar() for file in tmp_path.glob("*.params")}
    assert kept == {"last.params": 5, "best.params": 2, "epoch-0002.params": 2, "epoch-0004.params": 4}


def test_a_period_of_zero_keeps_no_numbered_files(tmp_path):
    net = nn.Dense(1, in_units=1)
    net.initialize()
    Exports(tmp_path, 0, DESCRIPTION).save(net, 50, 50, 0.5)
    assert {file.name for file in tmp_path.iterdir()} == {"last.params", "best.params", "network.json"}


def test_the_best_of_continuations_that_were_given_up_are_set_aside(tmp_path):
    net = nn.Dense(1, in_units=1)
    net.initialize()
    for value, name in ((2.0, "abandoned-epoch-0002-best.params"), (3.0, "abandoned-epoch-0002-best-2.params")):
        exports = Exports(tmp_path, 0, DESCRIPTION)
        for epoch, best_epoch in ((1, 1), (2, 2)):
            net.weight.set_data(mx.nd.full((1, 1), value if epoch == 2 else 1.0))
            exports.save(net, epoch, best_epoch, 0.5)
        assert not Exports(tmp_path, 0, DESCRIPTION).set_aside_after(2)
        (line,) = Exports(tmp_path, 0, DESCRIPTION).set_aside_after(1)
        assert "best.params is of epoch 2" in line and name in line
        assert not (tmp_path / "best.params").exists()
        assert mx.nd.load(str(tmp_path / name))["weight"].asscalar() == value
    net.weight.set_data(mx.nd.full((1, 1), 4.0))
    exports.save(net, 1, 1, 0.5)  # which writes network.json anew
    for aside in tmp_path.glob("abandoned-*"):
        assert read_description(aside).epoch == 2
