"""Interpolation matrices computed once for each input size, instead of in each training step.

They follow from the sizes of maps alone, and yet were two fifths of the operators of a network's graph. Here they are
further inputs of the graph, computed outside of it when images of another size come. A network's parameters, and what
is saved of them, stay what they are.
"""

import mxnet as mx
from mxnet import autograd

from model.extension import descendants, extend, trace
from model.upsample import Upsample

__all__ = ["keep_matrices"]

KEPT = 4  # sizes of a batch, times the devices


def keep_matrices(net):
    """Have a network that `model.onednn.hybridize` prepared, and that has not run, compute no matrix in its graph."""
    blocks = interpolations(net)
    if blocks:
        net.matrices = Matrices(net, blocks)
        extend(net, {type(net): KeptMatrices}, lambda block: block is net)


class KeptMatrices:
    """What precedes a network's class: it gives each interpolation its matrices, where the network is one graph."""

    def __call__(self, x):
        if isinstance(x, mx.nd.NDArray) and self._active:
            return super().__call__(x, *self.matrices.of(x))
        return super().__call__(x)

    def hybrid_forward(self, F, x, *matrices):
        with self.matrices.handed_out(matrices):
            return super().hybrid_forward(F, x)


class Matrices:
    """The matrices of a network's interpolations, for batches of the few sizes that came last.

    Parameters
    ----------
    net : HybridBlock
    blocks : list of model.upsample.Upsample
    """

    def __init__(self, net, blocks):
        self._net, self._blocks = net, blocks
        self._maps = None  # the symbol of what each of them reads
        self._known = {}  # (shape of a batch, device): list of NDArray

    def of(self, images):
        """All matrices for images (N, C, H, W), on their device, in the order in which `handed_out` takes them."""
        key = images.shape, images.context
        if key in self._known:
            self._known[key] = self._known.pop(key)  # the last to be let go of
        else:
            while len(self._known) >= KEPT * len({device for _, device in [*self._known, key]}):
                del self._known[next(iter(self._known))]
            with autograd.pause():
                self._known[key] = self._computed(*key)
        return self._known[key]

    def _computed(self, shape, device):
        if self._maps is None:
            self._maps = traced_inputs(self._net, self._blocks)
        _, shapes, _ = self._maps.infer_shape(data=shape)
        computed, found = {}, []
        for block, source, target in zip(self._blocks, shapes[::2], shapes[1::2]):
            maps = source[0] * source[1] if block.separable else None
            key = source[2:], target[2:], maps  # where these are equal, so are the matrices
            if key not in computed:
                computed[key] = block.matrices_of(source, target, device)
            found += computed[key]
        return found

    def handed_out(self, matrices):
        """A context in which each interpolation has its own of ``matrices``; none are in it where there are none."""
        return Given(self._blocks, matrices)


class Given:
    """Within it interpolations use what they are given, and after it again what they compute."""

    def __init__(self, blocks, matrices):
        self._blocks, self._matrices = blocks, iter(matrices) if matrices else None

    def __enter__(self):
        if self._matrices:
            for block in self._blocks:
                block.given = [next(self._matrices) for _ in range(block.matrix_count)]

    def __exit__(self, *_):
        for block in self._blocks:
            block.given = None


def interpolations(net):
    """All `Upsample` blocks of a network."""
    return [block for block in descendants(net) if isinstance(block, Upsample)]


def traced_inputs(net, blocks):
    """The two maps that each of some interpolations of a network reads, as one symbol of the images, "data"."""
    read = {}
    handles = [
        block.register_forward_pre_hook(lambda block, inputs: read.__setitem__(block, inputs)) for block in blocks
    ]
    trace(net, handles)
    return mx.sym.Group([maps for block in blocks for maps in read[block]])
