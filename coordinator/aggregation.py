"""Federated averaging of sparse updates, and the checks that an update passes before it is added."""

import math
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sparsyfed.edge_runtime import SparseUpdate, State
from sparsyfed.edge_runtime.artifact import Artifact
from sparsyfed.edge_runtime.budget import keep_counts
from sparsyfed.edge_runtime.container import DenseTensor, SparseTensor, Tensor
from sparsyfed.edge_runtime.errors import InputError, MismatchError
from sparsyfed.edge_runtime.format import ParameterKind
from sparsyfed.edge_runtime.sparse_arrays import entry_positions, selected


@dataclass(frozen=True, slots=True)
class UpdateRules:
    """What every update of a job must keep to.

    `keep` is the result of `keep_counts`; `variances` names the running variances; `norm_bound` is how many times the
    norm of its base the norm of an update may be.
    """

    keep: tuple[int, ...]
    variances: frozenset[str]
    norm_bound: float

    @classmethod
    def of_job(
        cls, artifact: Artifact, sparsity: float, budget: str | Mapping[str, int], norm_bound: float
    ) -> "UpdateRules":
        """Rules of a job that trains this artifact."""
        keep = keep_counts(artifact.parameters, sparsity, budget)
        used = (operation.variance for operation in artifact.operations)
        names = (artifact.parameters[index].name for index in used if index is not None)
        return cls(tuple(keep), frozenset(names), norm_bound)

    def read(self, data: bytes, base: State) -> SparseUpdate:
        """The update of these bytes, if it may be averaged over `base`.

        Checked in this order: the format, tensors and support against the base, the round, the number of entries
        against the budget, the norm, that no variance is negative. Raises FormatError or MismatchError.
        """
        update = SparseUpdate.decode(data, base=base)
        if update.round != base.round:
            raise MismatchError(f"update: got round {update.round}, wanted {base.round}")
        self._check_counts(update)
        limit = self.norm_bound * max(trainable_norm(base.tensors), 1.0)
        norm = trainable_norm(update.tensors)
        if not norm <= limit:
            raise MismatchError(f"update: got a norm of {norm:.6g}, wanted at most {limit:.6g}")
        for tensor in update.tensors:
            if tensor.name in self.variances and min(tensor.value, default=0.0) < 0.0:
                raise MismatchError(f"{tensor.name}: got a negative variance, wanted none")
        return update

    def _check_counts(self, update: SparseUpdate) -> None:
        if len(self.keep) == 1:
            if update.nonzeros > self.keep[0]:
                raise MismatchError(
                    f"update: got {update.nonzeros} entries, wanted at most {self.keep[0]}"
                )
            return
        for tensor, limit in zip(update.tensors, self.keep, strict=True):
            if isinstance(tensor, SparseTensor) and tensor.count > limit:
                raise MismatchError(
                    f"{tensor.name}: got {tensor.count} entries, wanted at most {limit}"
                )


def trainable_norm(tensors: Iterable[Tensor]) -> float:
    """Euclidean norm over v and the dense trainable tensors; running statistics follow the data and are left out."""
    total = 0.0
    for tensor in tensors:
        if isinstance(tensor, SparseTensor) or tensor.kind is not ParameterKind.STATISTIC:
            values = np.asarray(tensor.value, dtype=np.float64)
            total += float(values @ values)
    return math.sqrt(total)


@dataclass(slots=True)
class FederatedAverage:
    """Sum over devices k of n_k v_k, where n_k is the number of examples: v = sum n_k v_k / sum n_k (FedAvg).

    An entry that an update does not hold is zero and counts in the denominator. Dense tensors are averaged by the same
    formula. Sums are float64 at the support of the base and nowhere else, so memory is proportional to its nonzeros,
    whatever the number of updates. Floating point addition depends on the order: add updates sorted by device, and the
    result has the same bytes whoever was first.
    """

    base: State
    examples: int = 0
    sums: list[NDArray[np.float64]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sums = [np.zeros(tensor.count) for tensor in self.base.tensors]

    def add(self, update: SparseUpdate, examples: int) -> None:
        """Add one update that passed `UpdateRules.read` for the same base, trained on `examples` > 0 examples."""
        if examples < 1:
            raise InputError(f"update: got {examples} examples, wanted at least 1")
        for total, base, tensor in zip(self.sums, self.base.tensors, update.tensors, strict=True):
            values = np.asarray(tensor.value, dtype=np.float64)
            if isinstance(base, SparseTensor) and isinstance(tensor, SparseTensor):
                total[_places(base, tensor)] += examples * values
            else:
                total[:] += examples * values
        self.examples += examples

    def state(self) -> State:
        """The averaged state of the next round, in float32; its support is where that is not zero.

        Raises InputError if nothing was added.
        """
        if self.examples == 0:
            raise InputError("average: got no update, wanted at least one")
        tensors: list[Tensor] = []
        for total, base in zip(self.sums, self.base.tensors, strict=True):
            mean = (total / self.examples).astype(np.float32)
            if isinstance(base, SparseTensor):
                tensors.append(selected(base, mean, mean != 0))
            else:
                tensors.append(DenseTensor(base.name, base.kind, array("f", mean.tobytes())))
        return State(tuple(tensors), self.base.round + 1)


def _places(base: SparseTensor, part: SparseTensor) -> NDArray[np.int64]:
    """Where the entries of `part` lie in the value array of `base`, whose support holds them."""
    positions = entry_positions(part)
    if base.count == base.rows * base.columns:
        return positions
    return np.searchsorted(entry_positions(base), positions)
