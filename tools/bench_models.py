"""The models, batches and masks that benchmarks run on."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import nn

from sparsyfed import export
from sparsyfed.coordinator.compile import compile_model
from sparsyfed.edge_runtime import Artifact, Session, SparseTensor, State
from sparsyfed.edge_runtime.budget import keep_counts

BETA = 1.25
SEED = 0


@dataclass(frozen=True, slots=True)
class BenchModel:
    """A model as a module, which holds the values of `dense`, and as an artifact."""

    name: str
    module: nn.Module
    artifact: Artifact
    dense: State

    @classmethod
    def load(cls, name: str, input_shape: Sequence[int] | None) -> "BenchModel":
        """The model of a built-in name or package.module:function, the latter with `input_shape`.

        Raises what `compile_model` raises.
        """
        shape = input_shape if ":" in name else None
        artifact, dense = compile_model(name, seed=SEED, input_shape=shape, beta=BETA)
        module = export.models.load_model(name)
        export.load_state(module, dense)
        return cls(name, module, artifact, dense)

    def batch(self, batch_size: int) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """A batch of noise."""
        generator = np.random.default_rng(SEED)
        shape = (batch_size, *self.input_shape)
        return (
            generator.standard_normal(shape, dtype=np.float32),
            generator.integers(0, self.classes, batch_size).astype(np.int32),
        )

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return self.artifact.tensors[0].shape

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.artifact.tensors[self.artifact.output].size

    def masked(self, masks: str, sparsity: float, budget: str, trained: State | None) -> State:
        """A state of this sparsity: `masks` says which entries are left.

        * random: of each layer the same share, or the counts of budget "erk", anywhere;
        * initial: the largest initial |v|, as the method takes them for this budget;
        * trained: the largest |v| of the state `trained`, likewise.
        """
        if sparsity == 0:
            return self.dense if trained is None or masks != "trained" else trained
        if masks == "random":
            return random_masks(self.dense, self._random_counts(sparsity, budget))
        source = trained if masks == "trained" else self.dense
        assert source is not None
        with Session.open(self.artifact, source, batch_size=1) as session:
            return State(session.update(sparsity, budget).tensors, source.round)

    def _random_counts(self, sparsity: float, budget: str) -> list[int]:
        parameters = self.artifact.parameters
        if budget == "erk":
            return keep_counts(parameters, sparsity, budget)
        return [max(1, round((1 - sparsity) * parameter.count)) for parameter in parameters]


def random_masks(dense: State, counts: Sequence[int]) -> State:
    """A dense state with so many entries of each prunable weight left, anywhere."""
    generator = np.random.default_rng(SEED)
    tensors = [
        _random_part(tensor, count, generator) if isinstance(tensor, SparseTensor) else tensor
        for tensor, count in zip(dense.tensors, counts, strict=True)
    ]
    return State(tuple(tensors), dense.round)


def _random_part(tensor: SparseTensor, count: int, generator: np.random.Generator) -> SparseTensor:
    """`count` random entries of a full tensor."""
    places = np.sort(generator.choice(tensor.count, count, replace=False))
    rows, columns = np.divmod(places, tensor.columns)
    row_pointer = np.searchsorted(rows, np.arange(tensor.rows + 1))
    return replace(
        tensor,
        row_pointer=array("I", row_pointer.astype(np.uint32).tobytes()),
        column=array(tensor.column.typecode, columns.astype(tensor.column.typecode).tobytes()),
        value=array("f", np.asarray(tensor.value)[places].tobytes()),
    )
