"""Training in less memory: what a network computes on the way forward is computed again on the way back, not kept."""

import mxnet as mx
from mxnet import autograd
from mxnet.gluon import nn

from training.state import is_statistic

__all__ = ["Recomputation"]


class Recomputation:
    """A network that trains piece by piece (Chen et al., arXiv 1604.06174).

    The forward pass keeps what each piece reads and nothing of what is computed within. The backward pass takes the
    pieces from the last to the first, runs each once more, and then has all that its gradients need: the maps within
    one piece are in memory, never those of all. That costs a second forward pass. The numbers are the same to the bit;
    the pieces must not draw random ones.

    Parameters
    ----------
    net : HybridBlock
        Initialized. Its ``pieces()`` are blocks that, one after the other, do what it does; the first has parameters.
        They must not be hybridized with ``static_alloc``, by which each would keep its memory for itself.
    """

    def __init__(self, net):
        # a stage without a further unit is a piece that hands its input on, and records nothing
        self._pieces = [p for p in net.pieces() if not (isinstance(p, nn.HybridSequential) and not len(p))]
        trained = [any(p.grad_req != "null" for p in piece.collect_params().values()) for piece in self._pieces]
        self._first_trained = trained.index(True)  # what is frozen lies before it
        self._statistics = [parameter for parameter in net.collect_params().values() if is_statistic(parameter)]
        self._read = {}  # device: what each piece has read in the forward pass

    def __call__(self, images):
        """The network's output, to be called while autograd records, once on each device before `backward`."""
        # A GPU updates batch normalization's statistics in the forward pass, a CPU in the backward pass. Either will do
        # so when `backward` runs the pieces, and what a GPU does here is undone.
        statistics = [parameter.data(images.context) for parameter in self._statistics]
        before = [value.copy() for value in statistics]
        read = [images]
        with autograd.pause(train_mode=True):
            for piece in self._pieces[:-1]:
                read.append(piece(read[-1]))
        for value, old in zip(statistics, before):
            value[:] = old
        read[-1].attach_grad()
        self._read[images.context] = read
        return self._pieces[-1](read[-1])  # which is not run again

    def backward(self):
        """The gradients of all parameters, after those of the output have been taken."""
        gradients = {context: read.pop().grad for context, read in self._read.items()}
        for place in range(len(self._pieces) - 2, self._first_trained - 1, -1):
            piece = self._pieces[place]
            for context, read in self._read.items():
                maps = read.pop()
                if place > self._first_trained:  # before it there is no need for a gradient
                    maps.attach_grad()
                with autograd.record():
                    output = piece(maps)
                output.backward(gradients[context])
                gradients[context] = maps.grad
            del output
            mx.nd.waitall()  # or the engine would run the next piece forward meanwhile, and have memory for both
        self._read.clear()
