"""A moving average of a network's weights, which often classifies better than the last ones."""

import mxnet as mx
import numpy as np

from training.state import is_statistic

__all__ = ["WeightAverage"]

GROUP = 50  # arrays in one call of an operator that has room for 60


class WeightAverage:
    """The exponential moving average of a network's parameters and of batch normalization's statistics.

    The statistics are averaged like the weights, as those of the last weights would not fit the average's maps. At the
    start the decay is lower, (1 + n) / (10 + n) after n updates, so that the average soon forgets the first weights.

    Parameters
    ----------
    net : HybridBlock
        Initialized. Its first device's replica is averaged.
    trainer : training.flat_arrays.FlatTrainer
        Of this network.
    decay : float
        Of the average at each update, from 0 to below 1.

    Attributes
    ----------
    arrays : dict
        {name of the parameter as in the .params files: NDArray, float32}.
    """

    def __init__(self, net, trainer, decay):
        self._decay = decay
        flats = [*trainer.trained, *trainer.statistics]
        # averages, and what they follow
        self._pairs = [(flat.data[0].astype("float32"), flat.data[0]) for flat in flats]
        parts = {p.name: flat.part(mean, p) for flat, (mean, _) in zip(flats, self._pairs) for p in flat.parameters}
        parameters = net._collect_params_with_prefix()
        for parameter in parameters.values():
            if parameter.name not in parts:  # frozen
                parts[parameter.name] = parameter.list_data()[0].astype("float32")
        self.arrays = {name: parts[parameter.name] for name, parameter in parameters.items()}
        self._statistics = [name for name, p in parameters.items() if is_statistic(p)]

    def update(self, updates):
        """Follow the network after its update number ``updates``, which counts from 1."""
        rate = 1 - min(self._decay, (1 + updates) / (10 + updates))
        for first in range(0, len(self._pairs), GROUP):
            pairs = [(mean, value.astype("float32", copy=False)) for mean, value in self._pairs[first : first + GROUP]]
            # SGD's update with the gradient -value, weight decay 1 and the rate 1 - decay: average - rate * (average -
            # value), for many arrays in one call
            mx.nd.multi_sgd_update(
                *(array for pair in pairs for array in pair),
                lrs=[rate] * len(pairs),
                wds=[1.0] * len(pairs),
                rescale_grad=-1.0,
                num_weights=len(pairs),
                out=[average for average, _ in pairs],
            )
        if self._pairs[0][0].context.device_type == "cpu":
            mx.nd.waitall()  # a CPU's next backward pass changes statistics without the engine knowing who reads them

    def broadcast_statistics(self, group):
        """Give all processes of a group the first one's averages of statistics, which differ within an epoch.

        So all validate the network that is saved. Those of the other processes are never seen, and need not be saved.
        """
        if group.size == 1 or not self._statistics:
            return
        arrays = [self.arrays[name] for name in self._statistics]
        own = np.concatenate([array.asnumpy().ravel() for array in arrays])
        firsts = group.sum("average statistics", own if group.is_main_process else np.zeros_like(own))
        for array, part in zip(arrays, np.split(firsts, np.cumsum([array.size for array in arrays])[:-1])):
            array[:] = part.reshape(array.shape)

    def copy_to(self, net):
        """Give another network of this kind the average's values."""
        for name, parameter in net._collect_params_with_prefix().items():
            parameter.set_data(self.arrays[name].astype(parameter.dtype, copy=False))
