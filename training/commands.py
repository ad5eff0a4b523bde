"""What every training script does with its flags."""

from data.loader import ShardedLoader
from data.mixup import Mixing
from training.loop import fit

__all__ = ["loader", "train"]


def loader(dataset, split, sync, args, *, training):
    """The `ShardedLoader` of a split for this worker's devices."""
    return ShardedLoader(
        dataset,
        split,
        args.batch_size,
        sync.devices,
        rank=sync.rank,
        size=sync.size,
        training=training,
        seed=args.seed,
        threads=args.workers,
        limit=args.limit,
    )


def train(make_net, dataset, network, sync, args):
    """`fit` a network to a data set as the flags say.

    Parameters
    ----------
    make_net : callable
        Returns the network, new and uninitialized.
    dataset : data.dataset.Dataset
    network : str
        What the network is called, without its depth.
    sync : training.distributed.process_group.OneProcess
    args : argparse.Namespace
        The flags of `training.flags`.
    """
    mixing = Mixing(
        dataset.classes,
        alpha=args.alpha * args.mix_up,
        mixup_epochs=args.epochs - args.mix_up_off_epochs,
        epsilon=args.epsilon,
        seed=args.seed,
    )
    images = loader(dataset, "train", sync, args, training=True)
    validation = loader(dataset, "test", sync, args, training=False)
    fit(make_net, images, validation, mixing, sync, args, f"{dataset.name}_{network}{args.num_layers}")
