"""Models that come with the project, and the loader for everybody else's."""

import importlib
import inspect
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sparsyfed.edge_runtime.errors import ConfigurationError

NormName = Literal["batch", "group"]


def watch_cnn(num_classes: int = 7, channels: int = 6) -> nn.Module:
    """Return a 1-D CNN for motion windows of (6 channels, 256 samples): 102,976 prunable weights.

    It down-samples early (256 samples to 64, 32, 16, 8), so that its activations fit a watch.
    """

    def block(inputs: int, outputs: int, kernel: int, stride: int) -> list[nn.Module]:
        return [
            nn.Conv1d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False),
            nn.GroupNorm(8, outputs),
            nn.ReLU(),
        ]

    return nn.Sequential(
        *block(channels, 32, 9, 4),
        *block(32, 64, 5, 2),
        *block(64, 128, 5, 2),
        *block(128, 128, 3, 2),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(128, num_classes),
    )


class KeywordDSCNN(nn.Module):
    """A depthwise-separable CNN for spectrograms (time, bands), with or without a channel dimension of 1.

    The small DS-CNN of "Hello Edge: Keyword Spotting on Microcontrollers" (Zhang et al., 2017): one 10x4 convolution
    of stride 2 and four depthwise-separable 3x3 blocks, batch norms, global average pool.
    """

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, width, (10, 4), 2, (5, 1), bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.blocks = nn.Sequential(*(self._block(width) for _ in range(4)))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(width, num_classes)

    @staticmethod
    def _block(width: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (batch, classes) of spectrograms (batch, time, bands) or (batch, 1, time, bands)."""
        if x.dim() == 3:
            x = x.unsqueeze(1)
        logits: Tensor = self.classifier(self.pool(self.blocks(self.stem(x))).flatten(1))
        return logits


def kws_dscnn(num_classes: int = 12, width: int = 64) -> nn.Module:
    """Return a keyword spotter for spectrograms such as (1, 49, 10) or (49, 20): 22,016 prunable weights.

    The input size is not fixed: any time x bands of at least 10x4 will do.
    """
    return KeywordDSCNN(num_classes, width)


def kws_cnn(
    num_classes: int = 12,
    widths: Sequence[int] = (16, 48, 64, 128),
    strides: Sequence[int] = (2, 2, 1),
    stem_strides: tuple[int, int] = (4, 2),
) -> nn.Module:
    """Return a keyword spotter for microboards: 110,464 prunable weights, spectrograms (1, 49, 20).

    A 10x4 convolution, then 3x3 ones, one for each of `strides`. It down-samples early and is wide where
    the images are small, so that weights take the memory, which can be sparse, and not activations. Its
    norms are group norms, up to 8 channels a group: a board's batch may be a single example.
    """

    def block(
        inputs: int, outputs: int, kernel: tuple[int, int], stride: int | tuple[int, int]
    ) -> list[nn.Module]:
        padding = ((kernel[0] - 1) // 2, (kernel[1] - 1) // 2)
        return [
            nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False),
            nn.GroupNorm(max(1, outputs // 8), outputs),
            nn.ReLU(),
        ]

    layers = block(1, widths[0], (10, 4), stem_strides)
    for inputs, outputs, stride in zip(widths[:-1], widths[1:], strides, strict=True):
        layers += block(inputs, outputs, (3, 3), stride)
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], num_classes)
    )


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, as in "Deep Residual Learning for Image Recognition" (He et al., 2015)."""

    def __init__(
        self, inputs: int, outputs: int, stride: int, norm: Callable[[int], nn.Module]
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = norm(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), norm(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, of `outputs` channels and the input's size divided by the stride."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += shortcut
        result: Tensor = self.relu(out)
        return result


class ResNet(nn.Module):
    """A residual net for small images: 3x3 stem, no max pool, stages that halve the image from the second on."""

    def __init__(
        self, num_classes: int, widths: Sequence[int], blocks: int, norm: Callable[[int], nn.Module]
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.bn1 = norm(widths[0])
        self.relu = nn.ReLU(inplace=True)
        self.stages = len(widths)
        inputs = widths[0]
        for stage, width in enumerate(widths):
            strides = [1 if stage == 0 else 2] + [1] * (blocks - 1)
            layers = []
            for stride in strides:
                layers.append(ResidualBlock(inputs, width, stride, norm))
                inputs = width
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (batch, classes) of images (batch, 3, height, width)."""
        x = self.relu(self.bn1(self.conv1(x)))
        for stage in range(self.stages):
            x = self.get_submodule(f"layer{stage + 1}")(x)
        logits: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return logits


def _norm(name: NormName) -> Callable[[int], nn.Module]:
    if name == "batch":
        return nn.BatchNorm2d
    if name == "group":
        return lambda channels: nn.GroupNorm(channels // 8, channels)
    raise ConfigurationError(f"norm is {name!r}; it must be 'batch' or 'group'")


def resnet8(num_classes: int = 10, norm: NormName = "batch") -> nn.Module:
    """Return the small residual net for 32x32 images: three stages of one block, 16, 32 and 64 channels.

    As the image-classification model of MLPerf Tiny, but with batch-normalised shortcuts.
    """
    return ResNet(num_classes, (16, 32, 64), 1, _norm(norm))


def resnet18(num_classes: int = 10, norm: NormName = "batch") -> nn.Module:
    """Return ResNet-18 for 32x32 images: 11,164,352 prunable weights with 10 classes.

    The stem is a 3x3 convolution of stride 1 without max pool. `norm="group"` uses groups of 8 channels.
    """
    return ResNet(num_classes, (64, 128, 256, 512), 2, _norm(norm))


def mlp(
    features: int = 784, hidden: Sequence[int] = (256, 128), num_classes: int = 10
) -> nn.Module:
    """Return a multilayer perceptron with ReLU; an input of any shape with `features` elements is flattened."""
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in zip((features, *hidden[:-1]), hidden, strict=True):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(hidden[-1], num_classes))


def linear(features: int = 784, outputs: int = 10) -> nn.Module:
    """Return one linear layer on a flattened input: logistic regression, or linear regression with loss "mse"."""
    return nn.Sequential(nn.Flatten(), nn.Linear(features, outputs))


@dataclass(frozen=True, slots=True)
class BuiltInModel:
    """A model of this module: its builder and the shape of one example."""

    build: Callable[..., nn.Module]
    input_shape: tuple[int, ...]


BUILT_IN = {
    "watch_cnn": BuiltInModel(watch_cnn, (6, 256)),
    "kws_dscnn": BuiltInModel(kws_dscnn, (1, 49, 10)),
    "kws_cnn": BuiltInModel(kws_cnn, (1, 49, 20)),
    "resnet8": BuiltInModel(resnet8, (3, 32, 32)),
    "resnet18": BuiltInModel(resnet18, (3, 32, 32)),
    "mlp": BuiltInModel(mlp, (1, 28, 28)),
    "linear": BuiltInModel(linear, (1, 28, 28)),
}
"""The models that `load_model` and `example_input` know by name."""


def example_input(name: str) -> Tensor:
    """Return a batch of one example, zeros, for a built-in model with its default arguments."""
    return torch.zeros(1, *_built_in(name).input_shape, dtype=torch.float32)


def load_model(name: str, **arguments: Any) -> nn.Module:
    """Return a built-in model by name, or what the function at "package.module:function" returns.

    `arguments` are passed to the builder. The module must be importable from Python's path.

    Raises ConfigurationError if there is no such model, if the code of the module or the function
    raises anything, which is named with its place, or if it returns no torch.nn.Module.
    """
    build = _built_in(name).build if ":" not in name else _imported(name)
    try:
        inspect.signature(build).bind(**arguments)
    except TypeError as error:
        raise ConfigurationError(
            f"{name} does not take the arguments {arguments}: {error}"
        ) from error
    try:
        model = build(**arguments)
    except Exception as error:
        raise ConfigurationError(f"{name} raised {_described(error)}") from error
    if not isinstance(model, nn.Module):
        raise ConfigurationError(f"{name} returned {model!r:.80}; it must return a torch.nn.Module")
    return model


def _built_in(name: str) -> BuiltInModel:
    if name not in BUILT_IN:
        raise ConfigurationError(
            f"there is no model {name!r}; use one of {', '.join(BUILT_IN)}, or package.module:function"
        )
    return BUILT_IN[name]


def _imported(name: str) -> Callable[..., Any]:
    module_name, _, function_name = name.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), function_name]):
        raise ConfigurationError(f"got model {name!r}, wanted package.module:function")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        message = f"{name}: cannot import {module_name!r}: {_described(error)}"
        raise ConfigurationError(message) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ConfigurationError(f"{name}: {module_name} has no function {function_name!r}")
    return function  # type: ignore[no-any-return]


def _described(error: Exception) -> str:
    """Kind and text of an exception of a user's code, and the last place there that it came from."""
    if isinstance(error, SyntaxError):
        return f"SyntaxError: {error.msg} ({error.filename}:{error.lineno})"
    text = f"{type(error).__name__}: {error}"
    not_theirs = ("<frozen ", __file__, str(importlib.__file__), str(Path(torch.__file__).parent))
    frames = traceback.extract_tb(error.__traceback__)
    places = [f"{frame.filename}:{frame.lineno}" for frame in frames]
    theirs = [place for place in places if not place.startswith(not_theirs)]
    return f"{text} ({theirs[-1]})" if theirs else text
