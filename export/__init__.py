"""From PyTorch models to training artifacts and states, and back."""

from sparsyfed.export import models
from sparsyfed.export.powerprop import powerprop, reference
from sparsyfed.export.states import initial_state, load_state, state_from_model, to_inference
from sparsyfed.export.to_executorch import to_executorch
from sparsyfed.export.to_onnx import to_onnx
from sparsyfed.export.to_torchscript import to_torchscript
from sparsyfed.export.training_artifact import TrainingArtifact, compile  # noqa: A004 - see there

__all__ = [
    "TrainingArtifact",
    "compile",
    "initial_state",
    "load_state",
    "models",
    "powerprop",
    "reference",
    "state_from_model",
    "to_executorch",
    "to_inference",
    "to_onnx",
    "to_torchscript",
]
