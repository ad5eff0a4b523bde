"""What a training leaves for people to read: text log, CSV, TensorBoard events, and lines on the terminal."""

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

from base.files import append, writing

__all__ = ["Board", "Progress", "SilentBoard"]

HISTOGRAMS = 20  # times a training at which the parameters' distributions are written
GRID_IMAGES = 32


class Board:
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
        print(text, flush=True)
        append(self._files.log, f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n".encode())

    def epoch(self, row, metric_name):
        """An epoch's figures, to all places.

        ``row`` maps the CSV's columns, in their order, to numbers; ``metric_name`` says what train_metric is.
        """
        self.info(epoch_line(row, metric_name, self._epochs))
        header = "" if self._files.csv.exists() else ",".join(row) + "\r\n"
        figures = ",".join(f"{value:.6g}" for value in row.values())
        append(self._files.csv, f"{header}{figures}\r\n".encode())
        tags = {
            "loss/train": "train_loss",
            "loss/validation": "val_loss",
            f"{metric_name.replace(' ', '_')}/train": "train_metric",
            "accuracy/validation": "val_accuracy",
            "top5_accuracy/validation": "val_top5",
            "learning_rate": "lr",
            "images_per_second": "images_per_second",
        }
        for tag, column in tags.items():
            if column in row:
                self._events.add_summary(scalar_summary(tag, row[column]), row["epoch"])

    def images(self, images, dataset):
        """A grid of training images as the network is given them: (N, 3, H, W), normalized as the data set says."""
        shape = (1, 3, 1, 1)
        pixels = images[:GRID_IMAGES].as_in_context(mx.cpu()).astype("float32")
        pixels = pixels * mx.nd.array(dataset.std).reshape(shape) + mx.nd.array(dataset.mean).reshape(shape)
        pixels = (pixels / 255).clip(0, 1)
        self._events.add_summary(image_summary("training_images", pixels), 0)

    def histograms(self, net, epoch):
        """The distributions of all trainable parameters, in some of the epochs (from 1 on), the last among them."""
        period = max(1, self._epochs // HISTOGRAMS)
        if epoch % period and epoch != self._epochs:
            return
        for name, parameter in net._collect_params_with_prefix().items():  # named as in the .params files
            if parameter.grad_req != "null":
                values = parameter.data(parameter.list_ctx()[0]).asnumpy()
                if not np.isfinite(values).all():
                    continue  # it has no range to divide; the checkpoint that is due now says what is wrong
                self._events.add_summary(histogram_summary(f"parameters/{name}", values, bins=100), epoch)


class SilentBoard:
    """The `Board` of a worker that is not the first one, which writes for all."""

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
            while any(self._folder.glob(f"events.out.tfevents.{second:010d}.*")):
                second += 1
            self._path = self._folder / f"events.out.tfevents.{second:010d}.{socket.gethostname()}"
            self.add_event(Event(wall_time=time.time(), file_version="brain.Event:2"))
        data = event.SerializeToString()
        length = struct.pack("<Q", len(data))
        checksums = [struct.pack("<I", masked_crc32c(part)) for part in (length, data)]
        append(self._path, length + checksums[0] + data + checksums[1])


def epoch_line(row, metric_name, epochs):
    """An epoch's figures as one line that aligns with those of other epochs."""
    top5 = f"top-5 {row['val_top5']:.4f}  " if "val_top5" in row else ""
    return (
        f"epoch {row['epoch']:{len(str(epochs))}d}/{epochs}  "
        f"train loss {row['train_loss']:7.4f}  {metric_name} {row['train_metric']:.4f}  "
        f"validation loss {row['val_loss']:7.4f}  accuracy {row['val_accuracy']:.4f}  {top5}"
        f"lr {row['lr']:.2e}  {row['images_per_second']:7.1f} images/s  {tqdm.format_interval(row['seconds']):>8}"
    )


class Progress:
    """A bar over the steps of an epoch; where the output is no terminal, a plain line every so many steps.

    Parameters
    ----------
    steps : int
    description : str
    interval : int
        Steps between plain lines.
    done : int
        Steps that were done before.
    shown : bool
        Whether to print anything at all.
    """

    def __init__(self, steps, description, interval, done=0, shown=True):
        self._steps, self._description, self._interval = steps, description, interval
        self._started = time.monotonic()
        self._done, self._before, self._images = done, done, 0
        self._shown = shown
        disable = None if shown else True  # None: where the output is no terminal
        self._bar = tqdm(total=steps, initial=done, desc=description, unit="step", leave=False, disable=disable)

    def step(self, images, loss=None):
        """One more step done, of ``images`` images; ``loss`` is the mean since the beginning."""
        self._done += 1
        self._images += images
        seconds = time.monotonic() - self._started
        figures = {"images/s": f"{self._images / seconds:.1f}"}
        if loss is not None:
            figures = {"loss": f"{loss:.4f}", **figures}
        if not self._bar.disable:
            self._bar.set_postfix(figures, refresh=False)
            self._bar.update()
        elif self._shown and self._done % self._interval == 0:
            left = tqdm.format_interval(seconds / (self._done - self._before) * (self._steps - self._done))
            figures = "  ".join(f"{name} {value}" for name, value in figures.items())
            print(f"{self._description}  step {self._done}/{self._steps}  {figures}  {left} left", flush=True)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._bar.close()
