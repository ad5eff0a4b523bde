"""What is found of every image, by name.

A logged figure is a function and a line here: in `TRAINING_METRICS` for the training steps, in `VALIDATION_METRICS` for
the validation. Each gives one number for each image, (N,); its mean over the epoch goes to the CSV, the text log and
TensorBoard as train_NAME or val_NAME.
"""

import mxnet as mx
from mxnet import gluon

__all__ = ["TRAINING_METRICS", "VALIDATION_METRICS", "target_loss", "top_k_hits", "validation_metrics"]

target_loss = gluon.loss.SoftmaxCrossEntropyLoss(sparse_label=False)  # against rows of class probabilities
label_loss = gluon.loss.SoftmaxCrossEntropyLoss()


def hits(output, labels):
    """Whether each image's class has the largest of its logits: 0 or 1, (N, classes), (N,) -> (N,)."""
    return output.argmax(axis=1) == labels


def top_k_hits(output, labels, k=5):
    """Whether each image's class has one of the ``k`` largest of its logits: 0 or 1, (N, classes), (N,) -> (N,)."""
    best = output.topk(k=min(k, output.shape[1]))
    return mx.nd.broadcast_equal(best, labels.expand_dims(1)).sum(axis=1)


def target_hits(output, targets):
    """The probability that each image's target gives to the predicted class, (N, classes) twice -> (N,).

    0 or 1 without mixup; with mixup the share that the predicted class has in the mixture.
    """
    return mx.nd.pick(targets, output.argmax(axis=1))


# Of (logits, targets), both (N, classes), targets before label smoothing. The loss is logged as well.
TRAINING_METRICS = {"metric": target_hits}

# Of (logits (N, classes), labels (N,)).
VALIDATION_METRICS = {"loss": label_loss, "accuracy": hits, "top5": top_k_hits}


def validation_metrics(dataset):
    """Those of `VALIDATION_METRICS` that mean something for a `data.dataset.Dataset`."""
    return {name: metric for name, metric in VALIDATION_METRICS.items() if name != "top5" or dataset.top5}
