"""One worker of the tests of workers in step: a small network learns the digits, without chance in its images.

sync_worker.py steps FOLDER [flags]    20 training steps; its parameters then are FOLDER/RANK.npz
sync_worker.py masters FOLDER          no step: the state of a network in half precision that begins
sync_worker.py fit FOLDER [flags]      a whole training with its run in FOLDER
sync_worker.py fit-told FOLDER [flags] the same; its third step waits for a signal to come
"""

import functools
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from base.errors import run_command
from base.runtime import prepare_mxnet
from training.flags import parse_arguments, training_parser

STEPS = 20


def main():
    what, folder, *flags = sys.argv[1:]
    parser = training_parser(__doc__, datasets=["digits"], epochs=1, seed=1, lr=0.05, log_dir=folder)
    args = parse_arguments(parser, flags)
    prepare_mxnet()
    from data.augmentation import WholeImage
    from data.digits import open_digits
    from tests.test_loop import small_net
    from training.commands import join_group, train
    from training.network_file import describe

    with join_group(args) as group:
        if what == "masters":
            begin_in_half_precision(small_net(), group, args, Path(folder))
            return
        dataset = group.main_process_first(functools.partial(open_digits, args.data_dir))
        if what == "fit-told":
            hold_third_step()
        if what == "steps":
            take_steps(small_net(), dataset._replace(training_crop=WholeImage()), group, args, Path(folder))
        else:
            train(small_net, describe(dataset, "cifar", 56, "bottleneck"), dataset, group, args)


def hold_third_step():
    from training.learner import Learner

    step = Learner.step

    def held(self, examples, rate, epoch, number, **options):
        until = time.monotonic() + 600
        while (epoch, number) == (0, 2) and self.group.signals.number is None and time.monotonic() < until:
            time.sleep(0.01)
        return step(self, examples, rate, epoch, number, **options)

    Learner.step = held


def begin_in_half_precision(net, group, args, folder):
    import mxnet as mx
    import numpy as np

    from training.learner import initialize
    from training.state import TrainingState

    mx.random.seed(args.seed + group.rank)  # processes that begin differently
    initialize(net, group.devices, mx.init.Xavier(), "float16")
    trainer = group.trainer(net.collect_params(), "nag", {"momentum": 0.9, "multi_precision": True})
    np.savez(folder / f"{group.rank}.npz", **TrainingState(net, trainer, group).gather({}))


def take_steps(net, dataset, group, args, folder):
    import mxnet as mx
    import numpy as np

    from tests.test_loop import freeze_normalization
    from training.commands import make_loader
    from training.learner import initialize, train_step
    from training.optimizers import optimizer_options
    from training.state import TrainingState

    mx.random.seed(args.seed + group.rank)  # processes that begin differently, until the broadcast
    initialize(net, group.devices, mx.init.Xavier())
    freeze_normalization(net)
    trainer = group.trainer(net.collect_params(), *optimizer_options(args))
    state = TrainingState(net, trainer, group)
    trainer.set_learning_rate(args.lr)
    batches = make_loader(dataset, "train", group, args).epoch(0)
    for _, shares in zip(range(STEPS), batches):
        train_step(net, trainer, [(share.images, share.labels.one_hot(dataset.classes)) for share in shares], group)
    np.savez(folder / f"{group.rank}.npz", **state.gather(state.statistics()))


if __name__ == "__main__":
    run_command(main)
