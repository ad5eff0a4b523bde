"""Measure how large a new network's last features are, by its number of attention modules, and draw it.

python -m scripts.signal_by_depth --out docs/signal-by-depth.png

The paper says of naive attention learning that masks from 0 to 1, multiplied again and again, degrade the features of
deep layers (arXiv 1704.06904, section 3.1). This is that, on random images, before any training.
"""

from base.errors import UserError, run_command
from base.flags import OneLineParser, positive_int
from base.runtime import prepare_mxnet
from training.flags import LEARNINGS

IMAGES, SIZE = 16, 32


def main():
    parser = OneLineParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument(
        "--modules", type=positive_int, default=6, help="attention modules a stage, at most (default: 6)"
    )
    parser.add_argument("--seeds", type=positive_int, default=3, help="networks of each kind (default: 3)")
    parser.add_argument("--out", default="signal-by-depth.png", help="the picture")
    args = parser.parse_args()
    prepare_mxnet(use_gpus=False)  # what follows imports MXNet
    from model import get_attention_cifar

    signals = {learning: [] for learning in LEARNINGS}
    print("modules a stage  " + "  ".join(f"{learning:>8}" for learning in signals))
    for count in range(1, args.modules + 1):
        for learning, means in signals.items():
            means.append(mean_signal(get_attention_cifar, learning, count, range(args.seeds)))
        print(f"{count:15d}  " + "  ".join(f"{means[-1]:8.4f}" for means in signals.values()), flush=True)
    draw(signals, args.out)
    print(args.out)


def mean_signal(get_net, learning, count, seeds):
    """The mean of the pooled features before the classifier, over new networks of ``count`` modules a stage."""
    import mxnet as mx
    from mxnet import autograd

    from model.attention import AttentionVariant
    from training.learner import INITIALIZER

    total = 0.0
    for seed in seeds:
        mx.random.seed(seed)
        net = get_net(10, 56, modules=[count] * 3, variant=AttentionVariant(learning=learning))
        net.initialize(INITIALIZER)
        images = mx.nd.random.normal(shape=(IMAGES, 3, SIZE, SIZE))
        with autograd.train_mode():
            total += net.features(images).mean().asscalar()
    return total / len(seeds)


def draw(signals, path):
    """Draw {way of learning: means}."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for (learning, means), marker in zip(signals.items(), "os"):
        axes.plot(range(1, len(means) + 1), means, marker=marker, label=f"{learning} attention learning")
    axes.set(xlabel="attention modules in each stage", ylabel="mean of the last features", ylim=(0, None))
    axes.set_title("A new network's signal")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write {path}: {error}") from None


if __name__ == "__main__":
    run_command(main)
