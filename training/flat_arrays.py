"""Parameters that lie one after the other in a few flat arrays, so that one operator changes many of them.

An update, a sum over devices or processes and a copy cost a launch for each array, however small, and a network has
hundreds of parameters. Here their arrays become parts of a few: what is written to a parameter is in the flat array,
and the other way round. An update of each number by itself gives the same bits either way.
"""

import mxnet as mx
import numpy as np
from mxnet import autograd, gluon

from training.state import is_statistic

__all__ = ["FlatArray", "FlatTrainer"]

ALIGNMENT = 64  # numbers; each part begins at a multiple of it, as arrays of their own begin at one of 64 bytes
LARGEST = 8 * 2**20  # bytes of a flat array of what is trained: what is ready is sent while the others are computed

# Optimizers that treat every number by itself. Others may look at a whole parameter, such as at its norm.
ELEMENTWISE = {"adam", "nag", "sgd"}


class FlatArray:
    """What parameters of one type have on each device, in one array each, and their gradients in another.

    Parameters
    ----------
    parameters : list of gluon.Parameter
        Initialized, all trained or none, with the same devices. Their arrays become parts of the flat ones and keep
        their values; nothing that was computed with the arrays before may still need a gradient.

    Attributes
    ----------
    parameters : list of gluon.Parameter
    data, gradients : list of NDArray
        (size,), one a device; no gradients of parameters that are not trained. Between the parts are zeros.
    """

    def __init__(self, parameters):
        self.parameters, self._places, size = parameters, {}, 0
        for parameter in parameters:
            count = parameter.list_data()[0].size
            self._places[parameter.name] = slice(size, size + count), parameter.shape
            size += -(-count // ALIGNMENT) * ALIGNMENT
        self.data = self._zeros(size)
        self.gradients = self._zeros(size) if parameters[0].grad_req != "null" else []
        for parameter in parameters:
            values = [self.part(array, parameter) for array in self.data]
            for value, before in zip(values, parameter.list_data()):
                value[:] = before
            parameter._data = values
            if self.gradients:
                parameter._grad = [self.part(array, parameter) for array in self.gradients]
                autograd.mark_variables(values, parameter._grad, parameter.grad_req)
        self._parts = [(parameter, parameter._data, parameter._grad) for parameter in parameters]

    def _zeros(self, size):
        return [mx.nd.zeros((size,), value.context, value.dtype) for value in self.parameters[0].list_data()]

    def part(self, array, parameter):
        """A parameter's part of an array that lies as the flat ones do, in the parameter's shape."""
        place, shape = self._places[parameter.name]
        return array[place].reshape(shape)

    def check(self):
        """Raise RuntimeError where a parameter has been given arrays of its own since, which nothing here changes."""
        for parameter, data, gradients in self._parts:
            if parameter._data is not data or parameter._grad is not gradients:
                raise RuntimeError(f"{parameter.name} has other arrays than its trainer's")


class FlatTrainer(gluon.Trainer):
    """A `gluon.Trainer` that sums and updates a few flat arrays instead of hundreds of parameters.

    Parameters are together in an array where their type and multipliers are the same, up to `LARGEST` bytes in the
    order of the layers. For an optimizer that is not in `ELEMENTWISE`, each is alone.

    Parameters
    ----------
    parameters : gluon.ParameterDict
        Of an initialized network, of its final type and ``grad_req``.
    optimizer : str
    options : dict
        Of the optimizer.
    kvstore : str or None
        What sums over devices; None where something else sums.

    Attributes
    ----------
    trained, statistics : list of FlatArray
        Of what is trained, and of batch normalization's statistics.
    """

    def __init__(self, parameters, optimizer, options, kvstore="device"):
        values = list(parameters.values())
        self.trained = [FlatArray(group) for group in groups(values, alone=optimizer not in ELEMENTWISE)]
        statistics = [parameter for parameter in values if is_statistic(parameter)]
        self.statistics = [FlatArray(statistics)] if statistics else []
        # each replica is updated where it is, so that the optimizer's arrays are at hand to be saved
        super().__init__(parameters, optimizer, options, kvstore=kvstore, update_on_kvstore=False)
        # the optimizer knows a flat array by the number of its first parameter, whose multipliers are those of all
        self._numbers = [self._param2idx[flat.parameters[0].name] for flat in self.trained]

    def zero_gradients(self):
        """Let every gradient that backward passes add to be zero."""
        for flat in self.trained:
            if flat.parameters[0].grad_req == "add":
                for gradients in flat.gradients:
                    gradients[:] = 0

    def optimizer_arrays(self, parameter):
        """A trained parameter's optimizer arrays, a list for each device; made as the first update would if need be."""
        place = next(i for i, flat in enumerate(self.trained) if any(p is parameter for p in flat.parameters))
        flat, number = self.trained[place], self._numbers[place]
        for updater, value in zip(self._updaters, flat.data):
            if number not in updater.states:
                updater.states[number] = updater.optimizer.create_state_multi_precision(number, value)
                updater.states_synced[number] = True
            yield [flat.part(array, parameter) for array in nested_arrays(updater.states[number])]

    def _init_kvstore(self):
        super()._init_kvstore()
        if self._kvstore:
            for place, flat in enumerate(self.trained):
                self._kvstore.init(self._key(place), flat.gradients[0])

    def _key(self, place):
        """What a sum over devices knows a flat array by; the numbers before are the parameters'."""
        return len(self._params) + place

    def _allreduce_grads(self):
        if self._kvstore:
            for place, flat in enumerate(self.trained):
                self._kvstore.pushpull(self._key(place), flat.gradients, priority=-place)

    def _update(self, ignore_stale_grad=False):
        for flat in self.trained:
            flat.check()
        for device, updater in enumerate(self._updaters):
            gradients, data = (
                [flat.gradients[device] for flat in self.trained],
                [flat.data[device] for flat in self.trained],
            )
            updater(list(self._numbers), gradients, data)


def groups(parameters, alone=False):
    """The trained ones of some parameters, in lists of those that may share an array, or each ``alone``."""
    begun, size, found = {}, {}, []
    for parameter in parameters:
        if parameter.grad_req == "null":
            continue
        value = parameter.list_data()[0]
        key = parameter.name if alone else (value.dtype, parameter.lr_mult, parameter.wd_mult, parameter.grad_req)
        size_of_it = value.size * np.dtype(value.dtype).itemsize
        if key not in begun or size[key] + size_of_it > LARGEST:
            begun[key], size[key] = [], 0
            found.append(begun[key])
        begun[key].append(parameter)
        size[key] += size_of_it
    return found


def nested_arrays(state):
    """The arrays of an optimizer's state, which nests them in tuples as it likes and has None where there is none."""
    if isinstance(state, (list, tuple)):
        for part in state:
            yield from nested_arrays(part)
    elif state is not None:
        yield state
