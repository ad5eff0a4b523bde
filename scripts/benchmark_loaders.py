"""Compare photograph loaders on a CPU: this project's, MXNet's ImageRecordIter and a Gluon DataLoader.

    python -m scripts.benchmark_loaders DIR [--cores 1] [--json]

DIR is what `python -m data.imagenet` wrote. All three decode, take a random window of 224x224, mirror, vary the
colours along ImageNet's axes and normalize. Each measurement is a process of its own on so many cores, with one thread
or worker for each (ImageRecordIter takes at most half the cores less one, but at least one); the loaders take turns,
and the medians are shown.
"""

import itertools
import json
import multiprocessing
import os
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from base.errors import UserError, run_command
from base.flags import HelpFormatter, OneLineParser, batch_size, positive_float, positive_int
from base.runtime import prepare_mxnet

LOADERS = ("this project", "ImageRecordIter", "Gluon DataLoader")


def images_per_second(name, folder, cores, batch_size, seconds):
    """Throughput of one loader on this process's first ``cores`` cores, after an epoch to warm up."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    prepare_mxnet(use_gpus=False)
    epoch = {"this project": ours, "ImageRecordIter": image_record_iter, "Gluon DataLoader": gluon_data_loader}[name]
    epoch = epoch(folder, cores, batch_size)
    next(epoch)
    images, started = 0, time.monotonic()
    while time.monotonic() - started < seconds:
        images += next(epoch)
    return images / (time.monotonic() - started)


# Each of these yields, after every epoch it has read, the number of its images.


def ours(folder, cores, batch_size):
    import mxnet as mx

    from data.imagenet import open_imagenet
    from data.loader import Loader, LoaderOptions

    loader = Loader(
        open_imagenet(folder), "train", LoaderOptions(batch_size, seed=0, threads=cores), mx.cpu(), training=True
    )
    for epoch in itertools.count():
        yield sum(_arrived(batch.images) for batch in loader.epoch(epoch))


def image_record_iter(folder, cores, batch_size):
    import mxnet as mx

    from data.imagenet import MEAN, STD

    normalization = dict(zip(("mean_r", "mean_g", "mean_b", "std_r", "std_g", "std_b"), MEAN + STD))
    batches = mx.io.ImageRecordIter(
        path_imgrec=str(folder / "train.rec"), path_imgidx=str(folder / "train.idx"), shuffle=True,
        data_shape=(3, 224, 224), batch_size=batch_size, preprocess_threads=cores, random_resized_crop=True,
        min_random_area=0.08, max_random_area=1.0, min_aspect_ratio=3 / 4, max_aspect_ratio=4 / 3,
        rand_mirror=True, pca_noise=0.1, round_batch=False, **normalization,
    )  # fmt: skip
    while True:
        yield sum(_arrived(batch.data[0]) for batch in batches)
        batches.reset()


def gluon_data_loader(folder, cores, batch_size):
    from mxnet.gluon.data import DataLoader
    from mxnet.gluon.data.vision import ImageRecordDataset, transforms

    from data.imagenet import MEAN, STD

    augmentation = transforms.Compose(
        [
            transforms.RandomResizedCrop(224, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3)),
            transforms.RandomFlipLeftRight(),
            transforms.RandomLighting(0.1),
            transforms.ToTensor(),
            transforms.Normalize([mean / 255 for mean in MEAN], [std / 255 for std in STD]),
        ]
    )
    images = ImageRecordDataset(str(folder / "train.rec")).transform_first(augmentation)
    batches = DataLoader(images, batch_size, shuffle=True, last_batch="discard", num_workers=cores)
    while True:
        yield sum(_arrived(batch) for batch, _ in batches)


def _arrived(images):
    images.wait_to_read()
    return len(images)


def main():
    parser = OneLineParser(
        prog="python -m scripts.benchmark_loaders",
        description=__doc__.split("\n\n")[0],
        formatter_class=HelpFormatter,
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help="holds train.rec and train.idx")
    parser.add_argument("--cores", type=positive_int, default=1, help="cores each loader may use")
    parser.add_argument("--batch-size", "-b", type=batch_size, default=32, help="images a batch")
    parser.add_argument("--rounds", type=positive_int, default=3, help="turns of each loader")
    parser.add_argument("--seconds", type=positive_float, default=5, help="of a turn, at least")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    args = parser.parse_args()
    if args.cores > len(os.sched_getaffinity(0)):
        raise UserError(f"--cores {args.cores}: there are {len(os.sched_getaffinity(0))} here")
    if not (args.folder / "train.rec").exists():
        raise UserError(f"{args.folder} holds no train.rec: make it with python -m data.imagenet")
    turns = {name: [] for name in LOADERS}
    for name in LOADERS * args.rounds:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
            turn = executor.submit(images_per_second, name, args.folder, args.cores, args.batch_size, args.seconds)
            try:
                turns[name].append(turn.result())
            except BrokenProcessPool:
                raise UserError(f"the process that measured {name} was killed") from None
    medians = {name: statistics.median(rates) for name, rates in turns.items()}
    if args.json:
        print(json.dumps({"cores": args.cores, "images_per_second": turns, "median": medians}))
        return
    best_other = max(medians[name] for name in LOADERS[1:])
    print(f"{'loader':18}{'images/s':>10}{'per core':>10}{'least':>10}{'most':>10}")
    for name, median in medians.items():
        print(f"{name:18}{median:10.1f}{median / args.cores:10.1f}{min(turns[name]):10.1f}{max(turns[name]):10.1f}")
    print(f"{medians['this project'] / best_other:.2f} times the better of the others")


if __name__ == "__main__":
    run_command(main)
