"""Which parameters are kept, and under which names."""

import mxnet as mx
from mxnet.gluon import nn

from training.checkpoint import Checkpoints


def test_the_last_the_best_and_every_so_many_epochs_are_kept(tmp_path):
    net = nn.Dense(1, in_units=1, use_bias=False)
    net.initialize()
    checkpoints = Checkpoints(tmp_path, save_period=2)
    for epoch, accuracy in enumerate([0.1, 0.7, 0.3, 0.7, 0.2], start=1):
        net.weight.set_data(mx.nd.full((1, 1), epoch))
        checkpoints.save(net, epoch, accuracy)
    kept = {file.name: mx.nd.load(str(file))["weight"].asscalar() for file in tmp_path.iterdir()}
    assert kept == {"last.params": 5, "best.params": 2, "epoch-0002.params": 2, "epoch-0004.params": 4}
    assert (checkpoints.best_accuracy, checkpoints.best_epoch) == (0.7, 2)


def test_a_period_of_zero_keeps_no_numbered_files(tmp_path):
    net = nn.Dense(1, in_units=1)
    net.initialize()
    Checkpoints(tmp_path, save_period=0).save(net, 50, 0.5)
    assert {file.name for file in tmp_path.iterdir()} == {"last.params", "best.params"}
