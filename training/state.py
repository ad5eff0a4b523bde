"""The arrays a training goes on from, of its network and its optimizer."""

import mxnet as mx
import numpy as np

from base.errors import Diverged, UserError

__all__ = ["TrainingState", "is_statistic"]


def is_statistic(parameter):
    """Whether a parameter is one of batch normalization's statistics, which no gradient changes; weights may freeze."""
    return not parameter._differentiable


class TrainingState:
    """The arrays a training goes on from: parameters, batch normalization's statistics and the optimizer's state.

    Parameters
    ----------
    net : Block
        Initialized, on one device or on several.
    trainer : training.flat_arrays.FlatTrainer
        Its parameters'.
    group : training.distributed.process_group.SingleProcess
        What the first process's parameters reach all others by, and what the statistics of other processes come by.
    loss_scale : training.loss_scale.LossScale, optional
        Of a training in half precision.

    Attributes
    ----------
    loss_scale : training.loss_scale.LossScale or None
    """

    def __init__(self, net, trainer, group, loss_scale=None):
        self.loss_scale = loss_scale
        group.broadcast(net)  # before the optimizer's float32 copies of the parameters are made
        trainer.allreduce_grads()  # the first call, which gives every replica the first one's values: not after restore
        self._trainer, self._group = trainer, group
        self._shared, self._statistics = {}, {}  # name: its array on each device
        for name, parameter in net._collect_params_with_prefix().items():  # named as in the .params files
            if is_statistic(parameter):
                self._statistics[f"statistics/{name}"] = parameter.list_data()
                continue
            self._shared[f"parameters/{name}"] = parameter.list_data()
            if parameter.grad_req != "null":
                for number, arrays in enumerate(zip(*trainer.optimizer_arrays(parameter))):
                    self._shared[f"optimizer/{name}/{number}"] = arrays

    def include(self, kind, arrays):
        """Save and restore further arrays too: {name: NDArray}, of which the first process's go for all."""
        self._shared.update((f"{kind}/{name}", [array]) for name, array in arrays.items())

    @property
    def updates(self):
        """Updates made so far."""
        return self._trainer.optimizer.num_update

    def own_statistics(self):
        """This process's statistics, {name: numpy array}, which differ between devices: one row a device."""
        return {name: np.stack([v.asnumpy() for v in values]) for name, values in self._statistics.items()}

    def statistics(self):
        """As `own_statistics`, with the rows of all processes; all of them must call this."""
        mx.nd.waitall()  # batch normalization updates its statistics without the engine knowing
        own = self.own_statistics()
        if self._group.size == 1 or not own:
            return own
        flat = np.concatenate([rows.reshape(len(rows), -1) for rows in own.values()], axis=1)
        widths = [rows[0].size for rows in own.values()]
        parts = np.split(self._group.gather("statistics", flat), np.cumsum(widths)[:-1], axis=1)
        return {
            name: part.reshape(-1, *rows.shape[1:]).astype(rows.dtype) for (name, rows), part in zip(own.items(), parts)
        }

    def average_statistics(self):
        """Give all replicas of all processes the mean of their statistics, so that they are one network again."""
        for name, rows in self.statistics().items():
            if len(rows) == 1:
                continue
            # by differences, so that doing it again, as a resumed run may, changes nothing
            mean = rows[0] + (rows - rows[0]).sum(axis=0) / len(rows)
            for value in self._statistics[name]:
                value[:] = mean

    def gather(self, statistics):
        """Copies of all arrays, {name: numpy array}, with ``statistics`` as the method of that name gives them.

        Raises Diverged where a number is not finite: such a state must not replace one that is.
        """
        arrays = {name: values[0].asnumpy() for name, values in self._shared.items()} | statistics
        for name, array in arrays.items():
            if not np.isfinite(array).all():
                raise Diverged(f"{name} is not finite any more and was not saved")
        return arrays

    def restore(self, arrays, updates):
        """Take over what `gather` gave; where there are more or fewer devices than then, these get the rows' means."""
        for name, values in self._shared.items():
            for value in values:
                value[:] = arrays[name]
        for name, values in self._statistics.items():
            rows = arrays[name]
            if len(rows) != len(values) * self._group.size:
                rows = [rows.mean(axis=0)] * len(values) * self._group.size
            for value, row in zip(values, rows[self._group.rank * len(values) :]):
                value[:] = row
        self._trainer.optimizer.begin_num_update = self._trainer.optimizer.num_update = updates

    def check(self, layout):
        """Raise UserError unless ``layout``, {name: (dtype, shape)}, is that of arrays which fit this network."""
        own = {name: (values[0], 0) for name, values in self._shared.items()}
        own.update((name, (values[0], 1)) for name, values in self._statistics.items())
        for name in [*own, *layout]:
            if name not in layout or name not in own:
                raise UserError(f"{name} is in {'the network' if name in own else 'the checkpoint'} alone")
            (dtype, shape), (array, rows) = layout[name], own[name]
            if (dtype, tuple(shape[rows:])) != (np.dtype(array.dtype).name, array.shape):
                raise UserError(
                    f"{name} is {dtype} {tuple(shape)} in the checkpoint and "
                    f"{np.dtype(array.dtype).name} {array.shape} in the network"
                )
