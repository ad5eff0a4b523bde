"""Attention module: a trunk branch weighed by a soft mask branch (arXiv 1704.06904, section 3)."""

from mxnet.gluon import nn

from model.units import NormReLU

__all__ = ["AttentionModule", "Hourglass", "InBlocks", "SoftMask", "Upsample", "unit_sequence"]


class Upsample(nn.HybridBlock):
    """Bilinear interpolation of one feature map to the height and width of another, corners aligned.

    Equal to ``contrib.BilinearResize2D(x, like, mode="like")`` and written as matrix products, because that operator's
    backward pass alone took a quarter of a training step on a CPU. The interpolation matrices are computed from the
    two maps' sizes when the network runs, so one set of parameters serves any input size.

    Parameters
    ----------
    channels : int
    separable : bool
        Interpolate columns and rows one after the other, by two products: the cheaper way for maps of more than 10
        pixels or so. Otherwise by one product with the Kronecker product of the two matrices.

    Shapes: x (N, channels, h, w), like (N, channels, H, W) -> (N, channels, H, W).
    """

    def __init__(self, channels, separable, **kwargs):
        super().__init__(**kwargs)
        self._channels, self._separable = channels, separable
        self._dtype = "float32"

    def cast(self, dtype):
        self._dtype = dtype
        super().cast(dtype)

    def shares(self, F, x, like):
        """The share of every source row in every target row, (h, H), and of every column, (w, W)."""
        # Sizes are read from a single image's maps and gradients end there: reading all would cost a copy of them.
        # Of the operators that could take one, only slice, with all axes named, does so without such a copy.
        x, like = (F.BlockGrad(F.slice(maps, begin=(0, 0, 0, 0), end=(1, None, None, None))) for maps in (x, like))
        return [interpolation_matrix(F, x, like, axis).astype(self._dtype) for axis in (2, 3)]

    def hybrid_forward(self, F, x, like):
        rows, columns = self.shares(F, x, like)
        # The shares are constant; without BlockGrad their gradient would be computed all the same.
        if self._separable:
            maps = x.reshape((-3, -2))  # (N C, h, w)
            rows = F.broadcast_like(rows.expand_dims(0), maps, lhs_axes=(0,), rhs_axes=(0,))
            maps = F.batch_dot(F.BlockGrad(rows), maps, transpose_a=True)
            return F.dot(maps.reshape((-4, -1, self._channels, -2)), F.BlockGrad(columns))
        shares = F.broadcast_mul(
            rows.expand_dims(1).expand_dims(3),  # (h, 1, H, 1)
            columns.expand_dims(0).expand_dims(2),  # (1, w, 1, W)
        )
        return F.dot(x.reshape((0, 0, -1)), F.BlockGrad(shares.reshape((-3, -2))))  # by (h w, H, W)


def interpolation_matrix(F, source, target, axis):
    """Share of each position along an axis of source in each along that of target, in float32, shape (from, to).

    Position i of n lies at i (m - 1) / (n - 1) among m source positions; the two around it share it linearly.
    """
    source = F.contrib.arange_like(source, axis=axis).astype("float32")
    target = F.contrib.arange_like(target, axis=axis).astype("float32")
    step = F.broadcast_div(F.max(source), F.broadcast_maximum(F.max(target), F.ones(1)))
    position = F.broadcast_mul(target, step)
    distance = F.abs(F.broadcast_sub(source.reshape((-1, 1)), position.reshape((1, -1))))
    return F.relu(1 - distance)


class InBlocks(nn.HybridBlock):
    """A feature map as it is, but for its layout in memory.

    oneDNN keeps the maps between convolutions in blocks of channels. MXNet's own operators, such as products, write
    plain maps, and every oneDNN operator that meets one converts it first. Where this block is ``active`` (see
    `model.onednn.fuse`) it does so once for all: it is a convolution by ones, each channel with itself.

    Shapes: (N, channels, H, W) -> (N, channels, H, W).
    """

    def __init__(self, channels, **kwargs):
        super().__init__(**kwargs)
        self.active = False
        self._channels = channels

    def hybrid_forward(self, F, x):
        if not self.active:
            return x
        channels = self._channels
        ones = F.ones((channels, 1, 1, 1))
        return F.Convolution(x, ones, kernel=(1, 1), num_filter=channels, num_group=channels, no_bias=True)


def plainly(x):
    """The same map, which a oneDNN operator wrote, in MXNet's plain layout.

    An operator that is not of oneDNN would convert what it reads by itself, but in each pass again, and would keep
    memory for that. Reshaping does it once.
    """
    return x.reshape((0, 0, 0, 0))


class Hourglass(nn.HybridBlock):
    """Bottom-up, top-down part of the mask branch, defined by itself one level deeper.

    A level is: 3x3 max pooling of stride 2; ``r`` units; the inner level, if any, beside a skip unit; ``r`` units;
    up-sampling to the size of the level's input (section 3.1, figure 2).

    Parameters
    ----------
    levels : int
        How often the map is halved: 3, 2 and 1 in stages 1, 2 and 3.
    channels : int
        Channels, in and out.
    r : int
        Residual units after each pooling and before each up-sampling.
    unit : type
        Residual unit class.

    Shapes: (N, channels, H, W) -> (N, channels, H, W).
    """

    def __init__(self, levels, channels, r, unit, **kwargs):
        super().__init__(**kwargs)
        with self.name_scope():
            # As in the authors' network, windows start at the first pixel and the last one may hang over the edge.
            self.pool = nn.MaxPool2D(3, 2, ceil_mode=True)
            self.down = unit_sequence(r, channels, unit)
            self.skip = self.inner = None
            if levels > 1:
                self.skip = unit(channels, channels)
                self.inner = Hourglass(levels - 1, channels, r, unit)
            self.up = unit_sequence(r, channels, unit)
            self.upsample = Upsample(channels, separable=levels > 2)
            self.in_blocks = InBlocks(channels)

    def hybrid_forward(self, F, x):
        y = self.down(self.pool(x))
        if self.inner is not None:
            y = self.skip(y) + self.inner(y)
        return self.in_blocks(self.upsample(self.up(y), x))


class SoftMask(nn.HybridBlock):
    """Soft mask branch: the hourglass, then BN, ReLU, 1x1 convolution, twice, and a sigmoid (figure 2).

    Where the units' output is activated already, as in AttentionNeXt, the first BN and ReLU are left out. Parameters
    are those of `Hourglass`. Shapes: (N, channels, H, W) -> (N, channels, H, W), values in (0, 1).
    """

    def __init__(self, levels, channels, r, unit, **kwargs):
        super().__init__(**kwargs)
        with self.name_scope():
            self.hourglass = Hourglass(levels, channels, r, unit)
            self.head = nn.HybridSequential()
            for activated in (unit.activated, False):
                if not activated:
                    self.head.add(NormReLU(channels))
                self.head.add(nn.Conv2D(channels, 1, use_bias=False, in_channels=channels))

    def hybrid_forward(self, F, x):
        return F.Activation(plainly(self.head(self.hourglass(x))), act_type="sigmoid")


class AttentionModule(nn.HybridBlock):
    """``p`` units, then ``(1 + M(x)) * T(x)`` with a trunk T of ``t`` units, then ``p`` units (section 3.2).

    Parameters
    ----------
    levels : int
        Depth of the mask's hourglass.
    channels : int
        Channels, in and out.
    p, t, r : int
        Units before and after the split, in the trunk, and between two samplings of the mask.
    unit : type
        Residual unit class.

    Shapes: (N, channels, H, W) -> (N, channels, H, W).
    """

    def __init__(self, levels, channels, p, t, r, unit, **kwargs):
        super().__init__(**kwargs)
        with self.name_scope():
            self.before = unit_sequence(p, channels, unit)
            self.trunk = unit_sequence(t, channels, unit)
            self.mask = SoftMask(levels, channels, r, unit)
            self.in_blocks = InBlocks(channels)
            self.after = unit_sequence(p, channels, unit)

    def hybrid_forward(self, F, x):
        x = self.before(x)
        return self.after(self.in_blocks((1 + self.mask(x)) * plainly(self.trunk(x))))


def unit_sequence(count, channels, unit):
    """``count`` residual units, one after the other, that keep channels and size."""
    block = nn.HybridSequential()
    block.add(*[unit(channels, channels) for _ in range(count)])
    return block
