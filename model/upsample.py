"""Bilinear interpolation of feature maps as products with interpolation matrices."""

import mxnet as mx
from mxnet.gluon import nn

__all__ = ["Upsample", "interpolation_matrix"]


class Upsample(nn.HybridBlock):
    """Bilinear interpolation of one feature map to the height and width of another, corners aligned.

    Equal to ``contrib.BilinearResize2D(x, like, mode="like")`` and written as matrix products, because that operator's
    backward pass alone took a quarter of a training step on a CPU. The interpolation matrices are computed from the
    two maps' sizes when the network runs, so one set of parameters serves any input size.

    Parameters
    ----------
    channels : int
        Of the maps.
    separable : bool
        Interpolate columns and rows one after the other, by two products: the cheaper way for maps of more than 10
        pixels or so. Otherwise by one product with the Kronecker product of the two matrices.

    Attributes
    ----------
    channels : int
    separable : bool
    given : list of NDArray or of Symbol, or None
        The `matrices`, where they are not to be computed when the network runs (`model.constants`).

    Shapes: x (N, channels, h, w), like (N, channels, H, W) -> (N, channels, H, W).
    """

    def __init__(self, channels, separable, **kwargs):
        super().__init__(**kwargs)
        self.channels = channels
        self.separable = separable
        self.given = None
        self._dtype = "float32"

    def cast(self, dtype):
        self._dtype = dtype
        super().cast(dtype)

    def row_and_column_matrices(self, F, x, like):
        """The two interpolation matrices: of rows, shape (h, H), and of columns, shape (w, W)."""
        # Sizes are read from a single image's maps and gradients end there: reading all would cost a copy of them.
        # Of the operators that could take one, only slice, with all axes named, does so without such a copy.
        x, like = (F.BlockGrad(F.slice(maps, begin=(0, 0, 0, 0), end=(1, None, None, None))) for maps in (x, like))
        return [interpolation_matrix(F, x, like, axis).astype(self._dtype) for axis in (2, 3)]

    def matrices(self, F, x, like):
        """What maps are multiplied by: those of rows (N C, h, H) and of columns (w, W), or both in one (h w, H, W)."""
        rows, columns = self.row_and_column_matrices(F, x, like)
        if self.separable:
            maps = x.reshape((-3, -2))  # (N C, h, w)
            return [F.broadcast_like(rows.expand_dims(0), maps, lhs_axes=(0,), rhs_axes=(0,)), columns]
        shares = F.broadcast_mul(
            rows.expand_dims(1).expand_dims(3),  # (h, 1, H, 1)
            columns.expand_dims(0).expand_dims(2),  # (1, w, 1, W)
        )
        return [shares.reshape((-3, -2))]

    @property
    def matrix_count(self):
        """How many `matrices` there are."""
        return 2 if self.separable else 1

    def matrices_of(self, source, target, device):
        """The `matrices` for maps of shape ``source`` and others of shape ``target``, as NDArrays on a device."""
        # of the maps only height and width count here: one channel will do
        x, like = (mx.nd.zeros((1, 1, *shape[2:]), ctx=device) for shape in (source, target))
        matrices = self.matrices(mx.nd, x, like)
        if self.separable:
            rows, columns = matrices
            return [rows.broadcast_to((source[0] * source[1], *rows.shape[1:])), columns]
        return matrices

    def hybrid_forward(self, F, x, like):
        # The matrices are constant; without BlockGrad their gradient would be computed all the same.
        matrices = [F.BlockGrad(matrix) for matrix in self.given or self.matrices(F, x, like)]
        if self.separable:
            rows, columns = matrices
            maps = F.batch_dot(rows, x.reshape((-3, -2)), transpose_a=True)
            return F.dot(maps.reshape((-4, -1, self.channels, -2)), columns)
        return F.dot(x.reshape((0, 0, -1)), *matrices)


def interpolation_matrix(F, source, target, axis):
    """The share that each position of one map has in each position of another, along one axis.

    Position i of n lies at i (m - 1) / (n - 1) among m source positions; the two around it share it linearly.

    Parameters
    ----------
    F : module
        mxnet.nd or mxnet.sym.
    source, target : NDArray or Symbol
        The two maps; only their sizes count.
    axis : int
        Of both.

    Returns
    -------
    NDArray or Symbol
        In float32, shape (m, n).
    """
    source = F.contrib.arange_like(source, axis=axis).astype("float32")
    target = F.contrib.arange_like(target, axis=axis).astype("float32")
    # ones as F.ones makes them would be on the CPU: `model.constants` calls this outside of any device's context
    last = F.max(target)
    step = F.broadcast_div(F.max(source), F.broadcast_maximum(last, F.ones_like(last)))
    position = F.broadcast_mul(target, step)
    distance = F.abs(F.broadcast_sub(source.reshape((-1, 1)), position.reshape((1, -1))))
    return F.relu(1 - distance)
