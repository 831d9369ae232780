"""The NumPy oracle: what a training step has to compute, written for reading rather than for speed.

Independent of the C core: dense arrays, plain loops over kernel positions, float64 unless asked
otherwise. The chain of checks is torch autograd -> this module -> the C kernels. The operations are
in `reference_operations`.
"""

from array import array
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from sparsyfed.edge_runtime.artifact import Artifact, Operation, Parameter
from sparsyfed.edge_runtime.errors import InputError, MismatchError
from sparsyfed.edge_runtime.format import Loss, OperationKind, ParameterKind
from sparsyfed.edge_runtime.kept_inputs import keep_count
from sparsyfed.edge_runtime.reference_operations import (
    OPERATIONS,
    Array,
    Call,
    Gradients,
    Result,
    top_k,
)
from sparsyfed.edge_runtime.sparse_arrays import entry_positions
from sparsyfed.edge_runtime.state import DenseTensor, SparseTensor, State


class ReferenceModel:
    """Executes an artifact with a state: forward, loss, gradients, SGD steps, Top-K.

    `values[i]` is parameter i: v as (rows, columns), or a vector. `supports[i]` is the boolean
    (rows, columns) support of a weight, None for other parameters. `activations[t]` is tensor t of
    the last forward, (batch, channels, height, width). Raises MismatchError when the state is not
    for this artifact.
    """

    def __init__(self, artifact: Artifact, state: State, dtype: DTypeLike = np.float64) -> None:
        self.artifact = artifact
        self.dtype = np.dtype(dtype)
        self.values: list[Array] = []
        self.supports: list[Array | None] = []
        self.activations: list[Array] = []
        self._state = state
        self._results: list[Result] = []
        if [t.name for t in state.tensors] != [p.name for p in artifact.parameters]:
            raise MismatchError(
                "the state is not of this artifact: its tensors are not the parameters"
            )
        for parameter, tensor in zip(artifact.parameters, state.tensors, strict=True):
            value, support = _dense(parameter, tensor)
            self.values.append(value.astype(self.dtype))
            self.supports.append(support)

    def forward(self, x: ArrayLike, training: bool) -> Array:
        """Return the model's output (batch, channels, height, width).

        x: (batch, ...), each example in the order of the input tensor. With training=True batch
        norms use the batch's statistics. The model, running statistics included, stays as it is.
        """
        entry = self.artifact.tensors[0]
        data = self._inputs(np.asarray(x))
        if data.ndim == 0 or data.size == 0 or data.size != len(data) * entry.size:
            raise InputError(f"got x of shape {data.shape}, wanted (batch, {entry.size} values)")
        self.activations = [data.reshape(self._shape(0, len(data)))]
        self._results = []
        for operation in self.artifact.operations:
            inputs = [self.activations[i] for i in operation.inputs]
            result = OPERATIONS[operation.kind](self._call(operation, training, inputs[0]), *inputs)
            shape = self._shape(operation.output, len(data))
            self._results.append(result)
            self.activations.append(result.output.reshape(shape))
        return self.activations[self.artifact.output]

    def _inputs(self, x: Array) -> Array:
        """The numbers that a batch stands for: int8, and floats rounded to them, where the artifact says so."""
        quantization = self.artifact.quantization
        if quantization is None:
            return x.astype(self.dtype)
        scale = np.float32(quantization.scale)
        if x.dtype != np.int8:
            steps = np.rint(x.astype(np.float32) / scale) + quantization.zero_point
            x = np.clip(steps, -128, 127)
        return (scale * (x.astype(np.float32) - quantization.zero_point)).astype(self.dtype)

    def gradients(self, x: ArrayLike, y: ArrayLike) -> tuple[float, dict[str, Array]]:
        """Return the mean loss of a training batch and the gradients by parameter name.

        A weight's gradient is dL/dv, (rows, columns), zero off the support; that of a dense
        parameter dL/dp, a vector. y: (batch,) class labels, or (batch, ...) target values. The
        model stays as it is.
        """
        loss, gradients = self._gradients(x, y)
        return loss, {self.artifact.parameters[i].name: g for i, g in sorted(gradients.items())}

    def step(
        self, x: ArrayLike, y: ArrayLike, learning_rate: float, weight_decay: float = 0.0
    ) -> float:
        """Apply one step of SGD and return the loss of the batch before it.

        p <- p - learning_rate * (dL/dp + weight_decay * p) for v and the dense parameters;
        r <- (1 - momentum) * r + momentum * batch for running statistics, as PyTorch does.
        """
        loss, gradients = self._gradients(x, y)
        for index, gradient in gradients.items():
            value = self.values[index]
            self.values[index] = value - learning_rate * (gradient + weight_decay * value)
        for operation, result in zip(self.artifact.operations, self._results, strict=True):
            for place, batch in zip(
                (operation.mean, operation.variance), result.statistics or (), strict=False
            ):
                assert place is not None
                running = (1 - operation.momentum) * self.values[place]
                self.values[place] = running + operation.momentum * batch
        return loss

    def evaluate(self, x: ArrayLike, y: ArrayLike) -> tuple[float, int | None]:
        """Return the mean loss and the number of right answers (None for mean squared error)."""
        loss, _, correct = self._loss(self.forward(x, training=False), y)
        return loss, correct

    def state(self) -> State:
        """Return the model as a State with the support it began with, values rounded to float32."""
        tensors = []
        for tensor, value, support in zip(
            self._state.tensors, self.values, self.supports, strict=True
        ):
            stored = value if support is None else value[support]
            buffer = array("f", stored.astype(np.float32).tobytes())
            tensors.append(replace(tensor, value=buffer))
        return replace(self._state, tensors=tuple(tensors))

    def top_k(self, keep: int | Sequence[int]) -> dict[str, Array]:
        """Return v of each weight, (rows, columns), all but the entries of largest |v| set to zero.

        keep: one count over all layers, or one count per parameter (those of dense parameters are
        ignored). Ties go to the lower position, and among layers to the one that comes first.
        """
        weights = [i for i, support in enumerate(self.supports) if support is not None]
        result: dict[str, Array] = {}
        for group in [weights] if isinstance(keep, int) else [[i] for i in weights]:
            flat = np.concatenate([self.values[i].ravel() for i in group])
            kept = top_k(flat, keep if isinstance(keep, int) else keep[group[0]])
            ends = np.cumsum([self.values[i].size for i in group])
            for index, value in zip(group, np.split(kept, ends[:-1]), strict=True):
                name = self.artifact.parameters[index].name
                result[name] = value.reshape(self.values[index].shape)
        return result

    def weight(self, index: int) -> Array:
        """Return w = sign(v)|v|^beta of parameter `index`, (rows, columns)."""
        v = self.values[index]
        return np.asarray(np.sign(v) * np.abs(v) ** self.artifact.beta)

    def keep_count(self, index: int, elements: int) -> int:
        """Return how many of a batch's inputs are kept for the gradient of weight `index`."""
        support = self.supports[index]
        assert support is not None
        return keep_count(int(support.sum()), support.size, elements)

    def _shape(self, tensor: int, batch: int) -> tuple[int, int, int, int]:
        record = self.artifact.tensors[tensor]
        return batch, record.channels, record.height, record.width

    def _call(self, operation: Operation, training: bool, x: Array) -> Call:
        def value(index: int | None) -> Array | None:
            return None if index is None else self.values[index]

        shape = self._shape(operation.output, len(x))
        bias, mean, variance = (
            value(i) for i in (operation.bias, operation.mean, operation.variance)
        )
        if operation.kind in (OperationKind.CONVOLUTION, OperationKind.LINEAR):
            assert operation.weight is not None
            keep = self.keep_count(operation.weight, x.size)
            weight = self.weight(operation.weight)
            return Call(operation, shape, training, keep, weight, bias)
        return Call(operation, shape, training, 0, value(operation.weight), bias, mean, variance)

    def _gradients(self, x: ArrayLike, y: ArrayLike) -> tuple[float, dict[int, Array]]:
        """Return the loss and the gradients by parameter index."""
        loss, d_output, _ = self._loss(self.forward(x, training=True), y)
        flow = [np.zeros_like(a) for a in self.activations]
        flow[self.artifact.output] = d_output
        found: dict[int, Array] = {}
        for operation, result in zip(
            reversed(self.artifact.operations), reversed(self._results), strict=True
        ):
            gradients: Gradients = result.backward(flow[operation.output])
            for source, d_input in zip(operation.inputs, gradients.inputs, strict=True):
                flow[source] = flow[source] + d_input.reshape(flow[source].shape)
            if operation.weight is not None and gradients.weight is not None:
                found[operation.weight] = self._through_power(operation.weight, gradients.weight)
            if operation.bias is not None and gradients.bias is not None:
                found[operation.bias] = gradients.bias
        return loss, found

    def _through_power(self, index: int, d_weight: Array) -> Array:
        """Return dL/dv = beta |v|^(beta - 1) dL/dw at the support, 0 where v = 0.

        The gradient of a dense parameter is returned as it is.
        """
        v, support, beta = self.values[index], self.supports[index], self.artifact.beta
        if support is None:
            return d_weight
        slope = beta * np.abs(v) ** (beta - 1)
        return np.where(support & (v != 0), slope * d_weight, 0).astype(self.dtype)

    def _loss(self, output: Array, y: ArrayLike) -> tuple[float, Array, int | None]:
        """Return the mean loss, dL/d(output) and the number of right answers."""
        scores = output.reshape(len(output), -1)
        if self.artifact.loss == Loss.MEAN_SQUARED_ERROR:
            difference = scores - np.asarray(y, self.dtype).reshape(scores.shape)
            d_scores = 2 * difference / difference.size
            return float(np.mean(difference**2)), d_scores.reshape(output.shape), None
        labels, rows = np.asarray(y), np.arange(len(scores))
        shifted = scores - scores.max(axis=1, keepdims=True)
        log_total = np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        d_scores = np.exp(shifted - log_total)
        d_scores[rows, labels] -= 1
        loss = float(np.mean(log_total[:, 0] - shifted[rows, labels]))
        correct = int(np.sum(scores.argmax(axis=1) == labels))
        return loss, (d_scores / len(scores)).reshape(output.shape), correct


def _dense(parameter: Parameter, tensor: SparseTensor | DenseTensor) -> tuple[Array, Array | None]:
    """Return (values, support) of a stored tensor as dense arrays."""
    if isinstance(tensor, DenseTensor):
        if parameter.kind == ParameterKind.WEIGHT or len(tensor.value) != parameter.count:
            raise MismatchError(
                f"{parameter.name}: got a dense tensor of {len(tensor.value)}, wanted {parameter}"
            )
        return np.array(tensor.value), None
    shape = (tensor.rows, tensor.columns)
    if parameter.kind != ParameterKind.WEIGHT or shape != (parameter.rows, parameter.columns):
        raise MismatchError(f"{parameter.name}: got a sparse tensor of {shape}, wanted {parameter}")
    value, support = np.zeros(shape), np.zeros(shape, bool)
    positions = entry_positions(tensor)
    value.flat[positions] = np.asarray(tensor.value)
    support.flat[positions] = True
    return value, support
