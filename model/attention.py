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

    def shares(self, F, maps, like):
        """The share of every source row in every target row, (h, H), and of every column, (w, W)."""
        # Sizes are read from single maps and gradients end there: reading whole ones would cost a copy each.
        source = F.BlockGrad(F.slice_axis(maps, axis=0, begin=0, end=1))
        target = F.BlockGrad(F.slice_axis(like, axis=0, begin=0, end=1))
        rows = interpolation_matrix(F, source, target, 1, 2)
        columns = interpolation_matrix(F, source, target, 2, 3)
        return rows.astype(self._dtype), columns.astype(self._dtype)

    def hybrid_forward(self, F, x, like):
        maps = x.reshape((-3, -2))  # (N C, h, w)
        rows, columns = self.shares(F, maps, like)
        # The shares are constant; without BlockGrad their gradient would be computed all the same.
        if self._separable:
            rows = F.broadcast_like(rows.expand_dims(0), maps, lhs_axes=(0,), rhs_axes=(0,))
            maps = F.batch_dot(F.BlockGrad(rows), maps, transpose_a=True)
            maps = F.dot(maps, F.BlockGrad(columns))
        else:
            shares = F.broadcast_mul(
                rows.expand_dims(1).expand_dims(3),  # (h, 1, H, 1)
                columns.expand_dims(0).expand_dims(2),  # (1, w, 1, W)
            )
            maps = F.dot(F.flatten(maps), F.BlockGrad(shares.reshape((-3, -2))))  # by (h w, H, W)
        return maps.reshape((-4, -1, self._channels, -2))


def interpolation_matrix(F, source, target, source_axis, target_axis):
    """Share of each position along an axis of source in each along one of target, in float32, shape (from, to).

    Position i of n lies at i (m - 1) / (n - 1) among m source positions; the two around it share it linearly.
    """
    source = F.contrib.arange_like(source, axis=source_axis).astype("float32")
    target = F.contrib.arange_like(target, axis=target_axis).astype("float32")
    step = F.broadcast_div(F.max(source), F.broadcast_maximum(F.max(target), F.ones(1)))
    position = F.broadcast_mul(target, step)
    distance = F.abs(F.broadcast_sub(source.reshape((-1, 1)), position.reshape((1, -1))))
    return F.relu(1 - distance)


class InBlocks(nn.HybridBlock):
    """A feature map as it is, but for its layout in memory.

    oneDNN keeps the maps between convolutions in blocks of channels. MXNet's own operators, such as products, write
    plain maps, and every oneDNN operator that meets one converts it first. Where this block is ``active`` (see
    `model.fusion.fuse`) it does so once for all: it is a convolution by ones, each channel with itself.

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

    def hybrid_forward(self, F, x):
        y = self.down(self.pool(x))
        if self.inner is not None:
            y = self.skip(y) + self.inner(y)
        return self.upsample(self.up(y), x)


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
        return F.Activation(self.head(self.hourglass(x)), act_type="sigmoid")


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
        return self.after(self.in_blocks((1 + self.mask(x)) * self.trunk(x)))


def unit_sequence(count, channels, unit):
    """``count`` residual units, one after the other, that keep channels and size."""
    block = nn.HybridSequential()
    block.add(*[unit(channels, channels) for _ in range(count)])
    return block
