"""What a training leaves for people to read: text log, CSV, TensorBoard events, and lines on the terminal."""

import csv
import logging
import sys
import time
from pathlib import Path

import mxnet as mx
from mxboard import SummaryWriter
from tqdm import tqdm

from training.errors import UserError

__all__ = ["Board", "Progress", "RunFiles"]

HISTOGRAMS = 20  # times a training at which the parameters' distributions are written
GRID_IMAGES = 32


class RunFiles:
    """Where a run writes: LOG_DIR/board/RUN/, text/RUN.log, text/RUN.csv and params/RUN/.

    Parameters
    ----------
    log_dir : path
    name : str, optional
        RUN; must not exist yet.
    stem : str
        What a name is made from where none is given: STEM_YYYYmmddHHMM, and _2, _3 ... when it is taken.

    Raises UserError for a name that is taken and a folder that cannot be written.
    """

    def __init__(self, log_dir, name, stem):
        log_dir = Path(log_dir)
        stamped = f"{stem}_{time.strftime('%Y%m%d%H%M')}"
        candidates = [name] if name else [stamped, *(f"{stamped}_{i}" for i in range(2, 100))]
        try:
            for folder in ("board", "text", "params"):
                (log_dir / folder).mkdir(parents=True, exist_ok=True)
            self.name = next((name for name in candidates if self._claim(log_dir, name)), None)
        except OSError as error:
            raise UserError(f"cannot write under --log-dir {log_dir}: {error.strerror or error}") from None
        if self.name is None:
            raise UserError(f"the run {candidates[0]} exists in {log_dir}: choose another --run-name")
        self.board = log_dir / "board" / self.name
        self.log = log_dir / "text" / f"{self.name}.log"
        self.csv = log_dir / "text" / f"{self.name}.csv"
        self.params = log_dir / "params" / self.name

    @staticmethod
    def _claim(log_dir, name):
        """Take a name, for this process alone, by making its log; False where any file of it exists."""
        taken = (log_dir / "board" / name, log_dir / "text" / f"{name}.csv", log_dir / "params" / name)
        if any(path.exists() for path in taken):
            return False
        try:
            (log_dir / "text" / f"{name}.log").open("x").close()
        except FileExistsError:
            return False
        (log_dir / "params" / name).mkdir()
        return True


class Board:
    """Writes a run's `RunFiles`.

    Parameters
    ----------
    files : RunFiles
    epochs : int
        Of the whole training.
    """

    def __init__(self, files, epochs):
        self._files, self._epochs = files, epochs
        self._writer = SummaryWriter(logdir=str(files.board), flush_secs=30, verbose=False)
        self._log = logging.getLogger("training")
        self._log.setLevel(logging.INFO)
        self._log.propagate = False
        self._log.handlers = [logging.FileHandler(files.log), logging.StreamHandler(sys.stdout)]
        self._log.handlers[0].setFormatter(logging.Formatter("%(asctime)s %(message)s"))

    def info(self, text):
        """A line for the terminal and the text log."""
        self._log.info(text)

    def epoch(self, row, metric_name):
        """An epoch's figures, to all places.

        ``row`` maps the CSV's columns, in their order, to numbers; ``metric_name`` says what train_metric is.
        """
        self.info(epoch_line(row, metric_name, self._epochs))
        new = not self._files.csv.exists()
        with open(self._files.csv, "a", newline="") as file:
            writer = csv.DictWriter(file, row.keys())
            if new:
                writer.writeheader()
            writer.writerow({column: f"{value:.6g}" for column, value in row.items()})
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
                self._writer.add_scalar(tag, row[column], global_step=row["epoch"])

    def images(self, images, dataset):
        """A grid of training images as the network is given them: (N, 3, H, W), normalized as the data set says."""
        shape = (1, 3, 1, 1)
        pixels = images[:GRID_IMAGES].as_in_context(mx.cpu()).astype("float32")
        pixels = pixels * mx.nd.array(dataset.std).reshape(shape) + mx.nd.array(dataset.mean).reshape(shape)
        self._writer.add_image("training_images", (pixels / 255).clip(0, 1), global_step=0)

    def histograms(self, net, epoch):
        """The distributions of all trainable parameters, in some of the epochs (from 1 on), the last among them."""
        period = max(1, self._epochs // HISTOGRAMS)
        if epoch % period and epoch != self._epochs:
            return
        for name, parameter in net._collect_params_with_prefix().items():  # named as in the .params files
            if parameter.grad_req != "null":
                values = parameter.data(parameter.list_ctx()[0])
                self._writer.add_histogram(f"parameters/{name}", values, global_step=epoch, bins=100)

    def close(self):
        """Flush and close every file."""
        self._writer.close()
        for handler in self._log.handlers:
            handler.close()


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
    """

    def __init__(self, steps, description, interval):
        self._steps, self._description, self._interval = steps, description, interval
        self._started = time.monotonic()
        self._done = self._images = 0
        self._bar = tqdm(total=steps, desc=description, unit="step", leave=False, disable=None)

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
        elif self._done % self._interval == 0:
            left = tqdm.format_interval(seconds / self._done * (self._steps - self._done))
            figures = "  ".join(f"{name} {value}" for name, value in figures.items())
            print(f"{self._description}  step {self._done}/{self._steps}  {figures}  {left} left", flush=True)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._bar.close()
