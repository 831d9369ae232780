"""What a state and an update have in common: the tensors of a model, sparse where they are prunable."""

from __future__ import annotations

from typing import Any

from sparsyfed.edge_runtime import container
from sparsyfed.edge_runtime.container import DenseTensor, SparseTensor


class SparseModel:
    """Figures and matrices of tensors in the order of an artifact."""

    __slots__ = ()

    tensors: tuple[SparseTensor | DenseTensor, ...]

    @property
    def positions(self) -> int:
        """Number of prunable positions, stored or not."""
        return container.positions(self.tensors)

    @property
    def nonzeros(self) -> int:
        """Number of stored entries of the prunable weights: the size of the support."""
        return container.nonzeros(self.tensors)

    @property
    def density(self) -> float:
        """Stored share of the prunable positions; 0 where there are none."""
        return self.nonzeros / self.positions if self.positions else 0.0

    def csr(self) -> dict[str, Any]:
        """Copies of the prunable weights as `{name: scipy.sparse.csr_array}` of float32 v. Needs SciPy."""
        from scipy.sparse import csr_array  # noqa: PLC0415 - a device has no SciPy and needs none

        return {
            tensor.name: csr_array(
                (tensor.value, tensor.column, tensor.row_pointer),
                shape=(tensor.rows, tensor.columns),
                copy=True,
            )
            for tensor in self.tensors
            if isinstance(tensor, SparseTensor)
        }
