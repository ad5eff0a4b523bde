"""The straightforward form of the networks, which the faster ones are measured and tested against."""

from model.attention import SoftMask, mixed_attention
from model.extension import extend
from model.upsample import Upsample

__all__ = ["make_plain"]


class PlainUpsample(Upsample):
    """Bilinear interpolation by MXNet's operator of that name."""

    def hybrid_forward(self, F, x, like):
        return F.contrib.BilinearResize2D(x, like, mode="like")


class PlainSoftMask(SoftMask):
    """A mask by MXNet's own sigmoid, which takes one value at a time."""

    def hybrid_forward(self, F, x):
        if self.attention is mixed_attention:
            return F.sigmoid(self.logits(x))
        return super().hybrid_forward(F, x)


def make_plain(net):
    """Give a network that has not run yet the straightforward operators. Returns it."""
    extend(net, {Upsample: PlainUpsample, SoftMask: PlainSoftMask})
    return net
