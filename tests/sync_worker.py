"""One worker of the tests of workers in step: a small network learns the digits, without chance in its images.

sync_worker.py steps FOLDER [flags]    20 training steps; its parameters then are FOLDER/RANK.npz
sync_worker.py fit FOLDER [flags]      a whole training with its run in FOLDER
"""

import functools
import sys
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
    from training.commands import train
    from training.distributed import process_group

    with process_group.start(args) as workers:
        dataset = workers.in_turn(functools.partial(open_digits, args.data_dir))
        if what == "steps":
            take_steps(small_net(), dataset._replace(training_crop=WholeImage()), workers, args, Path(folder))
        else:
            train(small_net, dataset, "small", workers, args)


def take_steps(net, dataset, workers, args, folder):
    import mxnet as mx
    import numpy as np

    from tests.test_loop import freeze_normalization
    from training.commands import loader
    from training.loop import make_trainer, place, train_step
    from training.state import TrainingState

    mx.random.seed(args.seed + workers.rank)  # workers that begin differently, until the broadcast
    place(net, workers.devices, "float32", mx.init.Xavier())
    freeze_normalization(net)
    trainer = make_trainer(net, workers, args)
    state = TrainingState(net, trainer, workers)
    workers.broadcast(net)
    trainer.set_learning_rate(args.lr)
    batches = loader(dataset, "train", workers, args, training=True).epoch(0)
    for _, (batch,) in zip(range(STEPS), batches):
        train_step(net, trainer, [(batch.images, batch.labels.one_hot(dataset.classes))], workers)
    np.savez(folder / f"{workers.rank}.npz", **state.gather(state.statistics()))


if __name__ == "__main__":
    run_command(main)
