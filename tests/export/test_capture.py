from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from user_models import Forward, Model, lowered

from sparsyfed import export
from sparsyfed.edge_runtime.errors import InputError, UnsupportedOperationError
from sparsyfed.edge_runtime.format import OperationKind

torch.set_num_threads(1)


@pytest.mark.parametrize("batch", [1, 2, 3, 16])
def test_bytes_do_not_depend_on_the_example_batch(batch: int) -> None:
    model = export.models.resnet8()
    one = export.compile(model, torch.zeros(1, 3, 16, 16)).encode()
    assert export.compile(model, torch.rand(batch, 3, 16, 16)).encode() == one


def test_a_printed_artifact_is_short() -> None:
    artifact = export.compile(nn.Linear(4, 2), torch.zeros(1, 4))
    assert repr(artifact) == ("TrainingArtifact(beta=1.25, loss='cross_entropy', input_shape=(4,))")


@pytest.mark.parametrize("training", [True, False])
def test_model_mode_buffers_and_random_state_stay(training: bool) -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(0.5), nn.Flatten(), nn.Linear(18, 2)
    )
    model.train(training)
    model[2].train(not training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random_state = torch.random.get_rng_state()
    artifact = lowered(model, 1, 5, 5)
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert [module.training for module in model] == [
        training,
        training,
        not training,
        training,
        training,
    ]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert OperationKind.BATCH_NORM in [op.kind for op in artifact.operations]


class Refused:
    """A model with a convolution `conv` and other layers, and what its error must say."""

    def __init__(self, forward: Forward, pattern: str, **layers: nn.Module) -> None:
        self.model = Model(forward, conv=nn.Conv2d(2, 3, 3), **layers)
        self.pattern = pattern


def with_no_grad(m: Any, x: Tensor) -> Any:
    with torch.no_grad():
        return m.conv(x)


REFUSED = {
    "instance norm": Refused(
        lambda m, x: m.norm(m.conv(x)),
        r"instance_norm in module 'norm'.*GroupNorm",
        norm=nn.InstanceNorm2d(3),
    ),
    "ceil mode": Refused(
        lambda m, x: functional.max_pool2d(m.conv(x), 2, ceil_mode=True),
        r"ceil_mode.*ceil_mode=False",
    ),
    "divisor": Refused(
        lambda m, x: functional.avg_pool2d(m.conv(x), 2, divisor_override=3),
        r"divisor_override.*leave",
    ),
    "dilated pool": Refused(
        lambda m, x: functional.max_pool2d(m.conv(x), 2, dilation=2), r"dilated.*dilation=1"
    ),
    "transposed convolution": Refused(
        lambda m, x: m.up(m.conv(x)),
        r"conv_transpose2d in module 'up'.*Conv2d",
        up=nn.ConvTranspose2d(3, 3, 2),
    ),
    "concatenation": Refused(
        lambda m, x: torch.cat([m.conv(x), m.conv2(x)], 1),
        r"cat in.*adding",
        conv2=nn.Conv2d(2, 3, 3),
    ),
    "product": Refused(
        lambda m, x: m.conv(x) * m.conv2(x), r"mul in.*adding", conv2=nn.Conv2d(2, 3, 3)
    ),
    "scaling": Refused(lambda m, x: m.conv(x) * 0.5, r"mul in.*adding"),
    "softmax": Refused(
        lambda m, x: m.conv(x).flatten(1).softmax(1),
        r"softmax in.*cross-entropy loss applies the softmax",
    ),
    "log softmax": Refused(
        lambda m, x: functional.log_softmax(m.conv(x).flatten(1), 1),
        r"log_softmax in.*return logits",
    ),
    "transpose": Refused(lambda m, x: m.conv(x).transpose(2, 3), r"transpose in.*batch first"),
    "permute": Refused(lambda m, x: m.conv(x).permute(0, 2, 3, 1), r"permute in.*batch first"),
    "module used twice": Refused(
        lambda m, x: m.same(m.same(m.conv(x))),
        r"uses 'same.weight' again.*a layer of its own",
        same=nn.Conv2d(3, 3, 1),
    ),
    "batch norm used twice": Refused(
        lambda m, x: m.bn(m.bn(m.conv(x))), r"again.*a layer of its own", bn=nn.BatchNorm2d(3)
    ),
    "averaging batch norm": Refused(
        lambda m, x: m.bn(m.conv(x)),
        r"bn: a batch norm with momentum=None.*0.1",
        bn=nn.BatchNorm2d(3, momentum=None),
    ),
    "batch norm with a momentum that the format does not hold": Refused(
        lambda m, x: m.bn(m.conv(x)),
        r"format .* does not hold this model: .*at byte",
        bn=nn.BatchNorm2d(3, momentum=1.5),
    ),
    "batch norm without statistics": Refused(
        lambda m, x: m.bn(m.conv(x)),
        r"without running statistics.*GroupNorm",
        bn=nn.BatchNorm2d(3, track_running_stats=False),
    ),
    "linear on a sequence": Refused(
        lambda m, x: m.fc(m.conv(x).flatten(2)),
        r"linear in module 'fc'.*convolution with kernel size 1",
        fc=nn.Linear(9, 2),
    ),
    "mean over channels": Refused(
        lambda m, x: m.conv(x).mean(1), r"averages over dimensions.*spatial"
    ),
    "mean over everything": Refused(
        lambda m, x: m.conv(x).mean(), r"averages over dimensions.*spatial"
    ),
    "mean over the batch": Refused(
        lambda m, x: m.conv(x).mean(0, keepdim=True), r"averages over dimensions.*spatial"
    ),
    "batch mixed into features": Refused(
        lambda m, x: m.conv(x).view(-1, 3), r"not the batch of size.*keep the batch"
    ),
    "five dimensions": Refused(
        lambda m, x: m.conv(x).unsqueeze(1), r"an example of its result has shape.*one to three"
    ),
    "leaky relu": Refused(lambda m, x: functional.leaky_relu(m.conv(x)), r"leaky_relu in.*ReLU6"),
    "hardtanh": Refused(lambda m, x: functional.hardtanh(m.conv(x)), r"clamps to.*ReLU6"),
    "padding": Refused(lambda m, x: functional.pad(m.conv(x), (1, 1)), r"pad in.*padding"),
    "circular padding": Refused(
        lambda m, x: m.p(m.conv(x)),
        r"pad in module 'p'.*padding",
        p=nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular"),
    ),
    "constant added": Refused(
        lambda m, x: m.conv(x) + 1, r"takes the constant 1.*only with the input"
    ),
    "scaled add": Refused(
        lambda m, x: torch.add(m.conv(x), m.conv2(x), alpha=2),
        r"alpha=2.*as they are",
        conv2=nn.Conv2d(2, 3, 3),
    ),
    "broadcast add": Refused(
        lambda m, x: m.conv(x) + m.conv(x).mean((2, 3), keepdim=True), r"again.*of its own"
    ),
    "broadcast": Refused(
        lambda m, x: (y := m.conv(x)) + y.mean((2, 3), keepdim=True),
        r"adds examples of shapes.*one shape",
    ),
    "constant tensor": Refused(lambda m, x: m.conv(x + torch.ones(5)), r"ones in.*supported are"),
    "detach": Refused(lambda m, x: m.conv(x).detach(), r"detach in.*remove it"),
    "no grad": Refused(with_no_grad, r"set_grad_enabled.*remove torch.no_grad"),
    "pool indices": Refused(
        lambda m, x: functional.max_pool2d(m.conv(x), 2, return_indices=True)[1].float(),
        r"uses result 1.*pooled values",
    ),
    "double": Refused(lambda m, x: m.conv(x).double().float(), r"torch.float64.*float32"),
    "slice": Refused(lambda m, x: m.conv(x)[:, 1:], r"slice in.*supported are"),
    "noise": Refused(lambda m, x: m.conv(x + torch.rand_like(x)), r"rand_like in.*supported are"),
    "view read after an in-place change": Refused(
        lambda m, x: ((y := m.conv(x)).flatten(1), functional.relu_(y))[0],
        r"changed it in place.*inplace=False",
    ),
    "lstm": Refused(
        lambda m, x: m.rnn(m.conv(x).flatten(2))[0],
        r"rnn is LSTM, which no target runs.*Conv1d",
        rnn=nn.LSTM(25, 2),
    ),
    "unused layer": Refused(
        lambda m, x: m.conv(x),
        r"does not depend on spare.weight, spare.bias.*remove",
        spare=nn.Conv2d(2, 3, 3),
    ),
    "no layer": Refused(lambda _, x: x, r"does not depend on conv.weight.*remove"),
    "two outputs": Refused(lambda m, x: (m.conv(x), x), r"returns a tuple.*one tensor"),
    "branch on values": Refused(
        lambda m, x: m.conv(x) if x.sum() > 0 else m.conv(-x),
        r"captured as one graph.*branch on values",
    ),
    "branch on the batch size": Refused(
        lambda m, x: m.conv(x) if len(x) > 4 else m.conv(x).relu(),
        r"captured as one graph.*batch size",
    ),
    "fixed batch size": Refused(
        lambda m, x: m.conv(x).view(2, -1), r"captured as one graph.*fixed batch size"
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_name_the_operation_and_what_to_use(case: str) -> None:
    with pytest.raises(UnsupportedOperationError, match=REFUSED[case].pattern):
        lowered(REFUSED[case].model, 2, 5, 5)


def test_refusals_name_the_source_line() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return torch.tanh(m.conv(x))

    with pytest.raises(
        UnsupportedOperationError, match=r"tanh in .* at .*test_capture\.py:\d+: no target runs"
    ):
        lowered(Model(forward, conv=nn.Conv2d(2, 3, 3)), 2, 5, 5)


class Inputs(nn.Linear):
    def forward(self, left: Tensor, right: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(left + right)


class OwnWeight(nn.Module):
    offset: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.ones(3, 4))
        self.register_buffer("offset", torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.matrix)


class OwnBuffer(OwnWeight):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.offset


def shared() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    return model


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        (Inputs(4, 4), (4,), "forward takes 2 inputs (left, right)"),
        (OwnWeight(), (4,), "uses 'matrix' in the place of a weight"),
        (OwnBuffer(), (3,), "the model's own tensor 'offset'"),
        (shared(), (4,), "1.weight and 0.weight are one shared parameter"),
        (nn.Linear(4, 4).requires_grad_(requires_grad=False), (4,), "weight is frozen"),
        (nn.ReLU(), (4,), "no parameters"),
    ],
)
def test_models_that_devices_cannot_train(
    model: nn.Module, shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(UnsupportedOperationError, match=re.escape(message)):
        lowered(model, *shape)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_asymmetric_padding_is_refused() -> None:
    with pytest.raises(UnsupportedOperationError, match="pads the two ends differently"):
        lowered(nn.Conv2d(1, 1, 4, padding="same"), 1, 8, 8)


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        (nn.Conv2d(2, 3, 3), (2, 5, 5), r"one example of the model's output has shape \(3, 3, 3\)"),
        (nn.Linear(4, 1), (4,), "at least two classes"),
    ],
)
def test_cross_entropy_needs_logits(model: nn.Module, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(UnsupportedOperationError, match=message):
        lowered(model, *shape, loss="cross_entropy")


@pytest.mark.parametrize(
    ("example", "arguments", "message"),
    [
        ([1.0], {}, "is a list"),
        (torch.zeros(1, 4, dtype=torch.float64), {}, "torch.float64"),
        (torch.zeros(4), {}, "shape"),
        (torch.zeros(0, 4), {}, "at least one example"),
        (torch.zeros(1, 5), {}, "the model fails on a training batch of shape (2, 5)"),
        (torch.zeros(1, 4), {"loss": "hinge"}, "cross_entropy, mse"),
        (torch.zeros(1, 4), {"beta": 0.9}, "from 1 to 16"),
    ],
)
def test_wrong_arguments(example: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        export.compile(nn.Linear(4, 2), example, **arguments)


def test_wrong_model_arguments() -> None:
    with pytest.raises(InputError, match=r"must be a torch.nn.Module"):
        export.compile(len, torch.zeros(1, 4))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"weight is torch.float64; devices train float32"):
        export.compile(nn.Linear(4, 2).double(), torch.zeros(1, 4))
