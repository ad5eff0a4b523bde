"""What the networks of this package have in common."""

from mxnet.gluon import nn

__all__ = ["StagedNet"]


class StagedNet(nn.HybridBlock):
    """Features, a stem and stages among them, and a fully connected layer: (N, 3, H, W) -> (N, classes).

    Attributes
    ----------
    features : HybridSequential
        A subclass makes it: the stem first.
    stages_end : int
        How many of the features are the stem and the stages.
    output : Dense
    size_step, smallest_size, largest_size : int
        H and W are multiples of the first, from the second to the third.
    """

    largest_size = 8192

    def hybrid_forward(self, F, x):
        return self.output(self.features(x))

    def pieces(self):
        """The blocks that the network is when they run one after the other; each attention module is one."""
        return [*self.features, self.output]

    def beginnings(self):
        """How many of the `pieces` are the stem, the stem and the stages, and all but the classifier: {name: int}."""
        return {"stem": 1, "stages": self.stages_end, "all-but-output": len(self.features)}

    @classmethod
    def takes(cls, size):
        """Whether images may have a height or width of ``size``."""
        return size % cls.size_step == 0 and cls.smallest_size <= size <= cls.largest_size

    @classmethod
    def sizes(cls):
        """What `takes` accepts, in words."""
        return f"a multiple of {cls.size_step} from {cls.smallest_size} to {cls.largest_size}"
