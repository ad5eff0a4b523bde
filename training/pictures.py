"""Pictures of what a network attends to and of what it takes for what. Drawn without a display.

The colour maps are those of even lightness that colour-blind readers tell apart. Masks of all modules of an image have
one scale each, on a colour bar of its own, because they hardly vary beside each other.
"""

import io

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from base.files import write_whole

__all__ = [
    "as_array",
    "draw_channels",
    "draw_confusion",
    "draw_figure_1",
    "draw_images",
    "draw_masks",
    "save_picture",
    "verdict",
]

HEAT, FEATURES, COUNTS = "viridis", "cividis", "cividis"
OVERLAY = 0.65  # opacity of a mask over its image
DPI = 130
NAMED_CLASSES = 30  # in a confusion matrix; more names would overlap
NUMBERED_CLASSES = 12  # in a confusion matrix with its numbers


def verdict(predicted, probability, true=None):
    """A caption: the predicted class with its probability, and the true one where it is known."""
    text = f"{_shortened(predicted)} {probability:.0%}"
    if true is None:
        return text
    return f"true {_shortened(true)}\n{'predicted' if predicted == true else 'taken for'} {text}"


def draw_masks(views, masks, captions):
    """Every image beside its masks, the mean over channels as a heat map over the image: a row for each image.

    Parameters
    ----------
    views : array
        uint8 (N, H, W, 3).
    masks : dict
        {module: (N, channels, h, w)}, in the order of the columns.
    captions : list of str

    Returns a matplotlib Figure, as all functions here do.
    """
    figure, grid = _grid(len(views), 1 + len(masks), 1.7)
    means = {name: mask.mean(axis=1) for name, mask in masks.items()}
    for row, (view, caption) in enumerate(zip(views, captions)):
        _show(grid[row][0], view)
        grid[row][0].set_ylabel(caption, fontsize=8, parse_math=False)
        for axes, (name, mean) in zip(grid[row][1:], means.items()):
            shown = _overlay(axes, view, mean[row], mean.min(), mean.max())
            if row == 0:
                axes.set_title(name.replace(", ", "\n"), fontsize=9)
            if row == len(views) - 1:
                bar = figure.colorbar(shown, ax=[line[list(means).index(name) + 1] for line in grid], **_BELOW)
                _style(bar)
    grid[0][0].set_title("image", fontsize=9)
    figure.suptitle("Soft masks, mean over channels", fontsize=11)
    return figure


def draw_channels(view, masks, caption):
    """One image's masks over it: the mean over channels, the most and the least active channel; a column a module.

    Parameters
    ----------
    view : array
        uint8 (H, W, 3).
    masks : dict
        {module: (channels, h, w)}.
    caption : str
    """
    figure, grid = _grid(3, 1 + len(masks), 2.1)
    for axes in grid[:, 0]:
        axes.axis("off")
    _show(grid[0][0], view)
    grid[0][0].axis("on")
    grid[0][0].set_title(caption, fontsize=9, parse_math=False)
    for column, (name, mask) in zip(grid[:, 1:].T, masks.items()):
        activity = mask.mean(axis=(1, 2))
        most, least = int(activity.argmax()), int(activity.argmin())
        rows = {"mean over channels": mask.mean(axis=0)}
        rows.update({f"most active channel, {most}": mask[most], f"least active channel, {least}": mask[least]})
        for axes, (title, values) in zip(column, rows.items()):
            shown = _overlay(axes, view, values, values.min(), values.max())
            _style(figure.colorbar(shown, ax=axes, fraction=0.046))
            heading = f"{name}\n" if axes is column[0] else ""
            axes.set_title(heading + title, fontsize=9)
    figure.suptitle("Soft masks", fontsize=11)
    return figure


def draw_figure_1(view, maps, caption):
    """Features before the mask, mask, and features after it, for single channels: the layout of the paper's figure 1.

    The channels are, of each module, those whose mask changes most and least over the image.

    Parameters
    ----------
    view : array
        uint8 (H, W, 3).
    maps : dict
        {module: model.attention.AttentionMaps of (channels, h, w)}.
    caption : str
    """
    chosen = []
    for name, three in maps.items():
        variation = three.mask.std(axis=(1, 2))
        chosen += [(name, channel, three) for channel in (int(variation.argmax()), int(variation.argmin()))]
    figure, grid = _grid(len(chosen), 4, 1.9, height=1.6)
    for row, (name, channel, three) in zip(grid, chosen):
        _show(row[0], view)
        row[0].set_ylabel(f"{name}\nchannel {channel}", fontsize=8)
        features = three.trunk[channel], three.output[channel]
        limits = min(map(np.min, features)), max(map(np.max, features))
        for axes, values, colours, (least, most) in (
            (row[1], features[0], FEATURES, limits),
            (row[2], three.mask[channel], HEAT, (0, 1)),
            (row[3], features[1], FEATURES, limits),
        ):
            shown = axes.imshow(values, cmap=colours, vmin=least, vmax=most, interpolation="nearest")
            _style(figure.colorbar(shown, ax=axes, fraction=0.046))
            _bare(axes)
    for axes, title in zip(grid[0], ("image", "feature before mask", "soft mask", "feature after mask")):
        axes.set_title(title, fontsize=9)
    figure.suptitle(caption.replace("\n", ", "), fontsize=11, parse_math=False)
    return figure


def draw_confusion(matrix, class_names):
    """A confusion matrix, int (classes, classes): true classes down, predicted ones across; shares of each row."""
    classes = len(class_names)
    side = 4 + 0.22 * min(classes, NAMED_CLASSES)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.subplots()
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    shown = axes.imshow(shares, cmap=COUNTS, vmin=0, vmax=1)
    figure.colorbar(shown, ax=axes, fraction=0.046, label="share of the true class")
    if classes <= NAMED_CLASSES:
        names = list(map(_shortened, class_names))
        rotation = 90 if max(map(len, names)) > 2 else 0
        axes.set_xticks(range(classes), names, rotation=rotation, parse_math=False)
        axes.set_yticks(range(classes), names, parse_math=False)
    if classes <= NUMBERED_CLASSES:
        for (row, column), count in np.ndenumerate(matrix):
            colour = "black" if shares[row, column] > 0.6 else "white"
            axes.text(column, row, count, ha="center", va="center", color=colour, fontsize=8)
    accuracy = np.trace(matrix) / max(matrix.sum(), 1)
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.set_title(f"{matrix.sum():,} images, accuracy {accuracy:.4f}")
    return figure


def draw_images(views, captions, title, columns=5):
    """Images with captions, in rows of ``columns``."""
    rows = max(1, -(-len(views) // columns))
    figure, grid = _grid(rows, columns, 1.9)
    for axes in grid.flat:
        axes.axis("off")
    for axes, view, caption in zip(grid.flat, views, captions):
        axes.axis("on")
        _show(axes, view)
        axes.set_title(caption, fontsize=8, parse_math=False)
    figure.suptitle(title, fontsize=11, parse_math=False)
    return figure


def as_array(figure):
    """A figure's pixels: uint8 RGB (H, W, 3)."""
    figure.set_dpi(DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3]


def save_picture(figure, path):
    """Write a figure as PNG. Raises UserError where that cannot be done."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=DPI)
    content.seek(0)
    write_whole(path, content)


_BELOW = {"location": "bottom", "fraction": 0.03, "shrink": 0.9, "pad": 0.01}


def _grid(rows, columns, side, height=None):
    """A figure and its axes, an array (rows, columns), each ``side`` inches wide and ``height``, or as much, high."""
    figure = Figure(figsize=(side * columns + 0.6, (height or side) * rows + 0.9), layout="compressed")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _bare(axes):
    axes.set(xticks=[], yticks=[])


def _show(axes, view):
    axes.imshow(view, interpolation="nearest")
    _bare(axes)


def _overlay(axes, view, values, least, most):
    """A map (h, w) over an image. Returns what a colour bar is for."""
    height, width = view.shape[:2]
    # in light greys, so that dark parts do not darken the map's colours
    axes.imshow(view.mean(axis=2), cmap="gray", vmin=-255, vmax=255, interpolation="nearest")
    shown = axes.imshow(
        values,
        cmap=HEAT,
        vmin=least,
        vmax=most,
        alpha=OVERLAY,
        interpolation="bilinear",
        extent=(-0.5, width - 0.5, height - 0.5, -0.5),
    )
    _bare(axes)
    return shown


def _style(bar):
    bar.ax.tick_params(labelsize=7)
    bar.solids.set_alpha(1)
    least, most = bar.mappable.get_clim()
    bar.set_ticks([least, most], labels=[f"{least:.2f}", f"{most:.2f}"])


def _shortened(name, length=20):
    """A class's name as far as there is room for it, in characters that can be drawn."""
    name = name.encode(errors="replace").decode()
    return name if len(name) <= length else name[: length - 1] + "…"
