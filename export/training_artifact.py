"""The result of compiling a model, from which every target is written."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional

from sparsyfed.edge_runtime.artifact import Artifact
from sparsyfed.edge_runtime.errors import FormatError, InputError, UnsupportedOperationError
from sparsyfed.edge_runtime.format import Loss
from sparsyfed.edge_runtime.quantization import Quantization
from sparsyfed.export.capture import capture
from sparsyfed.export.parameters import model_tensors
from sparsyfed.export.powerprop import check_beta
from sparsyfed.export.to_native import to_native

LOSSES = {"cross_entropy": Loss.CROSS_ENTROPY, "mse": Loss.MEAN_SQUARED_ERROR}
"""The names of the losses in `compile`."""


@dataclass(frozen=True, slots=True)
class TrainingArtifact:
    """A model compiled for training on devices: its structure, without weights."""

    native: Artifact = field(repr=False)
    model: nn.Module = field(repr=False)
    """The module that was compiled, untouched."""
    beta: float
    """Exponent β of w = sign(v)·|v|^β."""
    loss: str
    """A key of LOSSES."""
    input_shape: tuple[int, ...]
    """Shape of one example."""

    def loss_of(self, output: Tensor, y: Tensor) -> Tensor:
        """Return the mean loss of a batch, of the model's output and labels or targets."""
        if self.loss == "mse":
            return functional.mse_loss(output, y)
        return functional.cross_entropy(output, y)

    def encode(self) -> bytes:
        """Return the bytes of the native artifact (docs/format.md, section 1)."""
        return self.native.encode()

    def save(self, path: str | Path) -> None:
        """Write the native artifact to a file, by convention `.sfd`; the file appears whole or not at all."""
        self.native.save(path)


def compile(  # noqa: A001 - the public name says what it does, as in torch.compile
    model: nn.Module,
    example_input: Tensor,
    beta: float = 1.25,
    loss: str = "cross_entropy",
    quantization: Quantization | None = None,
) -> TrainingArtifact:
    """Return the training artifact of an ordinary PyTorch model.

    `example_input` is a float32 batch of any number of examples; only the shape of one example matters. The model
    must take one tensor and return one: logits (batch, classes) for "cross_entropy" (mean over the batch), any shape
    for "mse" (mean over all elements). It is captured as it trains, and neither it nor its mode changes.

    With a `quantization` (`Quantization.of(x)` for the range of examples x) the native artifact takes its inputs as
    int8: a quarter of the memory of examples. Other targets have float32 inputs, and refuse it.

    Dropout is left out on devices: Top-K of v and of the saved activations regularise already.

    Raises UnsupportedOperationError, which names the operation, its place and what to use instead, and InputError for
    an argument that does not fit.
    """
    if loss not in LOSSES:
        raise InputError(f"loss is {loss!r}; it must be one of {', '.join(LOSSES)}")
    if not isinstance(model, nn.Module):
        raise InputError(f"the model is a {type(model).__name__}; it must be a torch.nn.Module")
    beta = check_beta(beta)
    parameters = tuple(entry.parameter for entry in model_tensors(model))
    captured = capture(model, example_input)
    native = replace(to_native(captured, parameters, beta, LOSSES[loss]), quantization=quantization)
    try:
        Artifact.decode(native.encode())
    except (FormatError, InputError) as error:
        raise UnsupportedOperationError(
            f"the artifact format (docs/format.md, section 1) does not hold this model: {error}"
        ) from error
    return TrainingArtifact(native, model, beta, loss, captured.input_shape)
