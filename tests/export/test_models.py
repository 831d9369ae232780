from pathlib import Path

import pytest
import torch
from torch import nn

from sparsyfed import export
from sparsyfed.edge_runtime.errors import ConfigurationError
from sparsyfed.edge_runtime.format import OperationKind
from sparsyfed.export import models

torch.set_num_threads(1)

PRUNABLE = {
    "watch_cnn": 102_976,
    "kws_dscnn": 22_016,
    "kws_cnn": 110_464,
    "resnet8": 77_360,
    "mlp": 234_752,
    "linear": 7_840,
    "resnet18": 11_164_352,
}
CLASSES = {"watch_cnn": 7, "kws_dscnn": 12, "kws_cnn": 12}


def test_all_models_are_known() -> None:
    assert models.BUILT_IN.keys() == PRUNABLE.keys()


@pytest.mark.parametrize("name", PRUNABLE)
def test_built_in_models_compile(name: str) -> None:
    artifact = export.compile(models.load_model(name), models.example_input(name)).native
    assert sum(artifact.parameters[i].count for i in artifact.prunable) == PRUNABLE[name]
    assert artifact.tensors[artifact.output].shape == (CLASSES.get(name, 10),)
    assert artifact.tensors[0].shape == models.BUILT_IN[name].input_shape


@pytest.mark.parametrize("shape", [(1, 49, 10), (49, 10), (1, 49, 20), (49, 20)])
def test_keyword_spotter_takes_spectrograms_with_and_without_channel(
    shape: tuple[int, ...],
) -> None:
    artifact = export.compile(models.kws_dscnn(num_classes=5), torch.zeros(1, *shape)).native
    assert artifact.tensors[0].shape == shape
    assert artifact.tensors[-1].shape == (5,)
    depthwise = [op.groups for op in artifact.operations if op.groups > 1]
    assert depthwise == [64] * 4


def test_the_spotter_for_boards_has_the_widths_and_strides_that_it_is_given() -> None:
    model = models.kws_cnn(num_classes=5, widths=(8, 12, 24), strides=(2, 1), stem_strides=(2, 2))
    artifact = export.compile(model, torch.zeros(1, 1, 49, 20)).native
    shapes = [tensor.shape for tensor in artifact.tensors]
    assert shapes[1::3][:3] == [(8, 24, 10), (12, 12, 5), (24, 12, 5)]
    assert shapes[-1] == (5,)


@pytest.mark.parametrize("build", [models.resnet8, models.resnet18])
def test_residual_nets_take_either_norm(build: type) -> None:
    for norm, kind in (("batch", OperationKind.BATCH_NORM), ("group", OperationKind.GROUP_NORM)):
        artifact = export.compile(build(num_classes=3, norm=norm), torch.zeros(1, 3, 16, 16)).native
        norms = {op.kind for op in artifact.operations if "NORM" in op.kind.name}
        assert norms == {kind}


def test_resnet18_has_the_parameter_names_of_torchvision() -> None:
    names = set(models.resnet18().state_dict())
    assert {"conv1.weight", "bn1.running_var", "layer1.0.conv2.weight", "fc.bias"} <= names
    assert {"layer2.0.downsample.0.weight", "layer4.1.bn2.bias"} <= names


def test_arguments_reach_the_builder() -> None:
    model = models.load_model("mlp", features=6, hidden=(5, 4, 3), num_classes=2)
    shapes = [tuple(p.shape) for n, p in model.named_parameters() if n.endswith("weight")]
    assert shapes == [(5, 6), (4, 5), (3, 4), (2, 3)]


def test_models_of_users_are_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nets_of_a_user.py").write_text(
        "from torch import nn\n"
        "def tiny(width=3):\n    return nn.Linear(width, 2)\n"
        "def wrong():\n    return 5\n"
        "def failing():\n    return {}['width']\n"
        "def failing_in_torch():\n    return nn.Linear('a', 2)\n"
    )
    (tmp_path / "broken_net_of_a_user.py").write_text("x = 1\ndef (\n")
    (tmp_path / "importing_net_of_a_user.py").write_text("import no_such_module\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert isinstance(models.load_model("nets_of_a_user:tiny"), nn.Linear)
    assert models.load_model("nets_of_a_user:tiny", width=7).in_features == 7
    for name, message in {
        "nets_of_a_user:wrong": "returned 5; it must return",
        "nets_of_a_user:absent": "no function 'absent'",
        "no_such_module:tiny": "cannot import 'no_such_module'",
        ":tiny": "wanted package.module:function",
        "nets_of_a_user:failing": r"KeyError: 'width' \(.*nets_of_a_user.py:7\)",
        "nets_of_a_user:failing_in_torch": r"TypeError: .* \(.*nets_of_a_user.py:9\)",
        "broken_net_of_a_user:tiny": r"SyntaxError: .* \(.*broken_net_of_a_user.py:2\)",
        "importing_net_of_a_user:tiny": r"'no_such_module' \(.*importing_net_of_a_user.py:1\)",
        "watch": "no model 'watch'; use one of watch_cnn",
    }.items():
        with pytest.raises(ConfigurationError, match=message):
            models.load_model(name)
    with pytest.raises(ConfigurationError, match="does not take the arguments"):
        models.load_model("nets_of_a_user:tiny", depth=3)
    with pytest.raises(ConfigurationError, match="'batch' or 'group'"):
        models.load_model("resnet8", norm="layer")
    with pytest.raises(ConfigurationError, match="no model"):
        models.example_input("nets_of_a_user:tiny")
