"""What a training leaves for people to read: lines on the terminal, text log, CSV, TensorBoard events."""

import socket
import struct
import time

import mxnet as mx
import numpy as np
from mxboard.proto.event_pb2 import Event
from mxboard.record_writer import masked_crc32c
from mxboard.summary import histogram_summary, image_summary, scalar_summary
from mxboard.writer import SummaryToEventTransformer
from tqdm import tqdm

from base.devices import in_own_thread
from base.files import append, writing
from base.text import one_line
from training.run.files import EVENTS, NO_CURVES

__all__ = ["RunLogger", "SilentLogger"]

HISTOGRAMS = 20  # times a training at which the parameters' distributions are written
GRID_IMAGES = 32
# The CSV's first columns, which other tools rely on; further figures follow them.
COLUMNS = ("epoch", "train_loss", "train_metric", "val_loss", "val_accuracy", "lr", "images_per_second", "seconds")


class RunLogger:
    """Writes a run's text files and events, each at once: nothing waits in a buffer for a process that is killed.

    Parameters
    ----------
    files : training.run.files.RunFiles
    epochs : int
        Of the whole training.
    """

    def __init__(self, files, epochs):
        self._files, self._epochs = files, epochs
        self._events = SummaryToEventTransformer(EventFile(files))

    def info(self, text):
        """A line for the terminal and the text log."""
        text = one_line(text)
        print(text, flush=True)
        append(self._files.log, f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n".encode(errors="surrogateescape"))

    def epoch(self, figures, metric_name):
        """An epoch's figures, {column of the CSV: number}, to all places; ``metric_name`` says what train_metric is."""
        row = {column: figures[column] for column in COLUMNS} | figures
        self.info(epoch_line(row, metric_name, self._epochs))
        self._files.add_row(row)
        for column, value in row.items():
            if column not in NO_CURVES:
                self._events.add_summary(scalar_summary(curve_name(column, metric_name), value), row["epoch"])

    def images(self, images, dataset):
        """A grid of training images as the network is given them: (N, 3, H, W), normalized as the data set says."""
        shape = (1, 3, 1, 1)
        pixels = images[:GRID_IMAGES].as_in_context(mx.cpu()).astype("float32")
        pixels = pixels * mx.nd.array(dataset.std).reshape(shape) + mx.nd.array(dataset.mean).reshape(shape)
        pixels = (pixels / 255).clip(0, 1)
        self._events.add_summary(image_summary("training_images", pixels), 0)

    def picture(self, name, pixels, epoch):
        """A picture, uint8 (H, W, 3), for TensorBoard's slider of this name."""
        image = mx.nd.array(pixels.transpose(2, 0, 1) / 255)
        self._events.add_summary(image_summary(name, image), epoch)

    @in_own_thread
    def histograms(self, net, epoch):
        """The distributions of all trainable parameters, in some of the epochs (from 1 on), the last among them."""
        period = max(1, self._epochs // HISTOGRAMS)
        if epoch % period and epoch != self._epochs:
            return
        for name, parameter in net._collect_params_with_prefix().items():  # named as in the .params files
            if parameter._differentiable:
                values = parameter.data(parameter.list_ctx()[0]).asnumpy()
                if not np.isfinite(values).all():
                    continue  # it has no range to divide; the checkpoint that is due now says what is wrong
                self._events.add_summary(histogram_summary(f"parameters/{name}", values, bins=100), epoch)


class SilentLogger:
    """The `RunLogger` of a process that is not the main one, which writes for all."""

    def info(self, *_):
        pass

    epoch = histograms = info


class EventFile:
    """A new file of TensorBoard events, written by whoever adds one.

    In place of mxboard's own, whose thread keeps what it could not write to itself.

    Parameters
    ----------
    files : training.run.files.RunFiles
    """

    def __init__(self, files):
        self._folder, self._path = files.board, None

    def add_event(self, event):
        """Append an event; the first makes the file."""
        if self._path is None:
            second = int(time.time())  # TensorBoard reads the files in the order of their names
            with writing(self._folder):
                self._folder.mkdir(parents=True, exist_ok=True)
            while any(self._folder.glob(f"{EVENTS}{second:010d}.*")):
                second += 1
            self._path = self._folder / f"{EVENTS}{second:010d}.{socket.gethostname()}"
            self.add_event(Event(wall_time=time.time(), file_version="brain.Event:2"))
        data = event.SerializeToString()
        length = struct.pack("<Q", len(data))
        checksums = [struct.pack("<I", masked_crc32c(part)) for part in (length, data)]
        append(self._path, length + checksums[0] + data + checksums[1])


def curve_name(column, metric_name):
    """TensorBoard's name of a column: "accuracy/validation" of val_accuracy, so that like stands beside like."""
    split, _, figure = column.partition("_")
    if split not in ("train", "val"):
        return "learning_rate" if column == "lr" else column
    names = {"metric": metric_name.replace(" ", "_"), "top5": "top5_accuracy"}
    if figure.startswith("ema_"):  # of the weights' average
        figure, split = figure.removeprefix("ema_"), "validation_ema"
    else:
        split = "train" if split == "train" else "validation"
    return f"{names.get(figure, figure)}/{split}"


def epoch_line(row, metric_name, epochs):
    """An epoch's figures as one line that aligns with those of other epochs."""
    widths = {"train_loss": "7.4f", "val_loss": "7.4f", "val_ema_loss": "7.4f", "lr": ".2e"}
    names = {
        "train_metric": metric_name,
        "val_loss": "validation loss",
        "val_accuracy": "accuracy",
        "val_top5": "top-5",
        "val_ema_loss": "EMA loss",
        "val_ema_accuracy": "EMA accuracy",
        "val_ema_top5": "EMA top-5",
    }
    figures = [
        f"{names.get(column, column.replace('_', ' '))} {value:{widths.get(column, '.4f')}}"
        for column, value in row.items()
        if column not in ("epoch", "images_per_second", "seconds")
    ]
    # the learning rate last, whatever the CSV's order is
    figures.sort(key=lambda figure: figure.startswith("lr "))
    return (
        f"epoch {row['epoch']:{len(str(epochs))}d}/{epochs}  {'  '.join(figures)}  "
        f"{row['images_per_second']:7.1f} images/s  {tqdm.format_interval(row['seconds']):>8}"
    )
