"""What a validation finds of each class, and its worst mistakes."""

import heapq

import numpy as np

from base.files import writing
from training.pictures import draw_confusion, draw_images, save_picture, verdict
from training.prediction import batch_examples

__all__ = ["Findings", "class_table", "draw_findings"]

WORST = 20  # mistakes in the picture of them


class Findings:
    """What a validation finds: how often each class is taken for each, and the worst mistakes with their images.

    Parameters
    ----------
    dataset : data.dataset.Dataset

    Attributes
    ----------
    matrix : array
        int (classes, classes), true classes down and predicted ones across. Of this process's images.
    """

    def __init__(self, dataset):
        self._dataset = dataset
        self.matrix = np.zeros((dataset.classes, dataset.classes), int)
        self._mistakes = []  # a heap of (loss, a number that decides between equal ones, example, probabilities)

    def add(self, batch, output):
        """Count a `data.loader.Batch` with the logits (count, classes) of its images that count."""
        probabilities = output.softmax().asnumpy()
        labels = batch.labels[: batch.count].asnumpy().astype(int)
        predicted = output.argmax(axis=1).asnumpy().astype(int)  # of the logits, as the accuracy is
        before = self.matrix.sum()
        np.add.at(self.matrix, (labels, predicted), 1)
        wrong = np.flatnonzero(predicted != labels)
        if not len(wrong):
            return
        examples = batch_examples(batch, self._dataset)
        for place in wrong:
            share = probabilities[place, labels[place]]
            mistake = (1 - share, -int(before + place), examples[place], predicted[place], probabilities[place].max())
            heapq.heappush(self._mistakes, mistake)
            if len(self._mistakes) > WORST:
                heapq.heappop(self._mistakes)

    def worst(self):
        """The mistakes that gave the true class the least probability, the worst first.

        Returns (`training.prediction.Example`, predicted class, its probability) of each.
        """
        return [tuple(mistake[2:]) for mistake in sorted(self._mistakes, reverse=True)]


def class_table(matrix, class_names):
    """A table of a confusion matrix: of every class its images, recall, precision and what it is most taken for."""
    width = max(5, *(len(name) for name in class_names))
    lines = [f"{'class':{width}}  {'images':>7}  {'recall':>7}  {'precision':>9}  most often taken for"]
    for label, name in enumerate(class_names):
        right, images, predicted = matrix[label, label], matrix[label].sum(), matrix[:, label].sum()
        others = matrix[label].copy()
        others[label] = 0
        taken = f"{class_names[others.argmax()]} ({others.max()})" if others.any() else ""
        figures = f"{_share(right, images):>7}  {_share(right, predicted):>9}"
        lines.append(f"{name:{width}}  {images:7d}  {figures}  {taken}".rstrip())
    return "\n".join(lines)


def draw_findings(findings, matrix, description, folder, stem):
    """Draw a validation's confusion matrix and worst mistakes. Yields the paths of the pictures.

    Parameters
    ----------
    findings : Findings
        Of this process.
    matrix : array
        The confusion matrix of all processes.
    description : training.network_file.NetworkDescription
    folder : pathlib.Path
        Made if it is not there.
    stem : str
        What the pictures' names begin with.

    Raises UserError where they cannot be written.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    names, worst = description.classes, findings.worst()
    captions = [verdict(names[taken], share, names[example.true]) for example, taken, share in worst]
    own = findings.matrix
    title = f"The worst of {int(own.sum() - np.trace(own)):,} mistakes in {int(own.sum()):,} images"
    if own.sum() != matrix.sum():
        title += f", one worker's share of {int(matrix.sum()):,}"
    pictures = {
        "confusion": draw_confusion(matrix, names),
        "mistakes": draw_images([example.view for example, *_ in worst], captions, title),
    }
    for name, figure in pictures.items():
        path = folder / f"{stem}-{name}.png"
        save_picture(figure, path)
        yield path


def _share(part, whole):
    return f"{part / whole:.4f}" if whole else "-"
