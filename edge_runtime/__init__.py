"""Training of sparse models on small devices: a C core in one arena, and its Python face.

Needs neither NumPy nor torch.
"""

from sparsyfed.edge_runtime.artifact import Artifact
from sparsyfed.edge_runtime.errors import (
    ArenaError,
    BackendError,
    ConfigurationError,
    DivergedError,
    FormatError,
    InputError,
    MismatchError,
    SparsyFedError,
    StoppedError,
    UnsupportedOperationError,
    VerificationError,
)
from sparsyfed.edge_runtime.plan import MemoryPlan, plan
from sparsyfed.edge_runtime.quantization import Quantization
from sparsyfed.edge_runtime.session import Session
from sparsyfed.edge_runtime.state import DenseTensor, SparseTensor, State
from sparsyfed.edge_runtime.update import SparseUpdate

__all__ = [
    "ArenaError",
    "Artifact",
    "BackendError",
    "ConfigurationError",
    "DenseTensor",
    "DivergedError",
    "FormatError",
    "InputError",
    "MemoryPlan",
    "MismatchError",
    "Quantization",
    "Session",
    "SparseTensor",
    "SparseUpdate",
    "SparsyFedError",
    "State",
    "StoppedError",
    "UnsupportedOperationError",
    "VerificationError",
    "plan",
]
