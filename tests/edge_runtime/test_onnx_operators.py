"""The operators for ONNX Runtime take a graph from anywhere: an error for what does not fit, never a crash.

A sanitized build takes half a minute of a core to make: how to run this with one stands in CONTRIBUTING.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from onnx import helper  # noqa: E402

from sparsyfed.edge_runtime.backends import onnx_engine  # noqa: E402
from sparsyfed.edge_runtime.format import OperationKind  # noqa: E402

TYPES = {
    "f": onnx.TensorProto.FLOAT,
    "l": onnx.TensorProto.INT64,
    "H": onnx.TensorProto.UINT16,
}
MAX, AVERAGE, ADAPTIVE = (
    OperationKind.MAX_POOL,
    OperationKind.AVERAGE_POOL,
    OperationKind.ADAPTIVE_AVERAGE_POOL,
)


@dataclass(frozen=True)
class Node:
    """A graph of one node; an input or output None is left out."""

    operator: str
    inputs: tuple[NDArray[Any] | None, ...]
    outputs: str = "f"
    """Their types; "-" is left out."""
    integers: tuple[int, ...] = (0,)
    numbers: tuple[float, ...] = (0.5, 0.1)
    shape: tuple[int, ...] = (0,)

    def run(self) -> None:
        given = {f"i{n}": value for n, value in enumerate(self.inputs) if value is not None}
        results = {f"o{n}": kind for n, kind in enumerate(self.outputs) if kind != "-"}
        declared = helper.make_tensor_value_info
        node = helper.make_node(
            self.operator,
            [f"i{n}" if value is not None else "" for n, value in enumerate(self.inputs)],
            [f"o{n}" if kind != "-" else "" for n, kind in enumerate(self.outputs)],
            domain="sparsyfed",
            integers=self.integers,
            numbers=self.numbers,
            shape=self.shape,
        )
        graph = helper.make_graph(
            [node],
            "one",
            [declared(name, TYPES[value.dtype.char], None) for name, value in given.items()],
            [declared(name, TYPES[kind], None) for name, kind in results.items()],
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("sparsyfed", 1)], ir_version=10
        )
        session = onnx_engine.session(model.SerializeToString(), threads=1, kernels="sparsyfed")
        session.run(None, given)


def floats(*shape: int) -> NDArray[np.float32]:
    return np.asarray(np.random.default_rng(0).random(shape, np.float32))


def counts(*values: int) -> NDArray[np.int64]:
    return np.array(values, np.int64)


WINNERS = np.zeros((2, 3, 2, 2), np.uint16)
CONVOLUTION = (1, 3, 3, 1, 1, 1, 1, 1, 1)
WINDOW = (2, 2, 2, 2, 0, 0)

RIGHT = {
    "to_blocks": Node("to_blocks", (floats(2, 3),)),
    "to_rows": Node("to_rows", (floats(17, 3, 2, 2, 2),)),
    "layer": Node(
        "layer",
        (floats(2, 4, 5, 5), floats(6, 4, 3, 3), floats(6)),
        integers=CONVOLUTION,
        shape=(-1, 6, 5, 5),
    ),
    "layer_backward": Node(
        "layer_backward",
        (floats(2, 6, 5, 5), floats(2, 4, 5, 5), floats(6, 4, 3, 3), counts(3, 7)),
        "fff",
        integers=(*CONVOLUTION, 1),
    ),
    "batch_norm": Node("batch_norm", (floats(2, 3, 4), *(floats(3) for _ in range(4))), "ffff"),
    "batch_norm_evaluated": Node(
        "batch_norm_evaluated", (floats(2, 3, 4), *(floats(3) for _ in range(4)))
    ),
    "batch_norm_backward": Node(
        "batch_norm_backward", (floats(2, 3, 4), floats(2, 3, 4), floats(3), floats(6)), "fff"
    ),
    "norm": Node("norm", (floats(2, 6, 4), floats(6), floats(6)), "ff", integers=(2, 12, 4, 3)),
    "norm_backward": Node(
        "norm_backward",
        (floats(2, 6, 4), floats(2, 6, 4), floats(6), floats(2, 4)),
        "fff",
        integers=(2, 12, 4, 3, 6),
    ),
    "rectifier": Node("rectifier", (floats(7),)),
    "rectifier_backward": Node("rectifier_backward", (floats(7), floats(7))),
    "smooth": Node("smooth", (floats(7),), integers=(OperationKind.GELU, 0)),
    "smooth_backward": Node(
        "smooth_backward", (floats(7), floats(7)), integers=(OperationKind.SILU, 0)
    ),
    "pool": Node(
        "pool", (floats(2, 3, 4, 5),), "fH", integers=(MAX, 0, *WINDOW), shape=(-1, 3, 2, 2)
    ),
    "pool_backward": Node(
        "pool_backward",
        (floats(2, 3, 2, 2), WINNERS),
        integers=(MAX, 0, *WINDOW),
        shape=(-1, 3, 4, 5),
    ),
    "descend": Node("descend", (floats(7), floats(7), floats(), floats())),
}


def test_the_library_takes_the_right_calls() -> None:
    for node in RIGHT.values():
        node.run()
    for kind, size in ((AVERAGE, (2, 2)), (ADAPTIVE, (3, 1))):
        integers, shape = (kind, 0, *WINDOW), (-1, 3, *size)
        replace(RIGHT["pool"], outputs="f-", integers=integers, shape=shape).run()


def with_input(operator: str, place: int, value: NDArray[Any] | None) -> Node:
    node = RIGHT[operator]
    return replace(node, inputs=(*node.inputs[:place], value, *node.inputs[place + 1 :]))


def with_integer(operator: str, place: int, value: int) -> Node:
    node = RIGHT[operator]
    integers = (*node.integers[:place], value, *node.integers[place + 1 :])
    return replace(node, integers=integers)


MISSING = [(with_input(name, 0, None), "input is missing") for name in RIGHT]
WRONG = [
    (with_input("to_blocks", 0, floats(3)), "no batch"),
    (with_input("to_rows", 0, floats(0, 2)), "without elements"),
    (with_input("rectifier", 0, floats(*[1] * 9)), "more than 8 dimensions"),
    (with_input("layer", 1, floats(6, 4, 3, 2)), "weight of a layer"),
    (with_input("layer", 1, None), "missing"),
    (with_input("layer", 2, floats(5)), "another size"),
    (with_input("layer", 0, floats(2, 4, 5)), "no batches"),
    (with_input("layer", 0, floats(2, 4, 5, 5, 1)), "no batches"),
    (with_integer("layer", 0, 3), "groups"),
    (with_integer("layer", 0, 0), "groups"),
    (with_integer("layer", 1, 0), "windows"),
    (with_integer("layer", 3, 0), "windows"),
    (with_integer("layer", 5, 2**31), "windows"),
    (with_integer("layer", 7, 9), "windows"),
    (with_integer("layer", 8, -1), "integer"),
    (replace(RIGHT["layer"], integers=(1,)), "windows"),
    (replace(RIGHT["layer"], integers=(1,) * 13), "not large enough"),
    (replace(RIGHT["layer"], shape=(-1, 6, 6, 5)), "windows"),
    (replace(RIGHT["layer"], shape=(-1, 6, 5, 2**40)), "shape"),
    (replace(RIGHT["layer"], shape=(-1, 2**20, 2**20, 1)), "shape"),
    (replace(RIGHT["layer"], shape=(-1, 6, -5, 5)), "shape"),
    (replace(RIGHT["layer"], shape=(2,)), "no batch"),
    (replace(RIGHT["layer"], shape=(1,) * 9), "not large enough"),
    (with_input("layer_backward", 0, floats(3, 6, 5, 5)), "no batches"),
    (with_input("layer_backward", 0, floats(2, 6, 5, 4)), "windows"),
    (with_input("layer_backward", 2, floats(7, 4, 3, 3)), "weight of a layer"),
    (with_input("layer_backward", 3, counts(3)), "no count"),
    (with_input("layer_backward", 3, counts(3, -1)), "below 0"),
    (with_integer("layer_backward", 9, 2), "no count"),
    (replace(RIGHT["layer_backward"], outputs="f-f"), "leaves out"),
    (with_input("batch_norm", 0, floats(2, 4, 4)), "another size"),
    (with_input("batch_norm", 0, floats(2, 3, 4, 1, 1)), "no batches"),
    (with_input("batch_norm", 1, floats(2)), "another size"),
    (with_input("batch_norm", 4, floats(2)), "another size"),
    (with_input("batch_norm", 3, None), "missing"),
    (replace(RIGHT["batch_norm"], outputs="f-ff"), "leaves out"),
    (with_input("batch_norm_evaluated", 2, floats(1)), "another size"),
    (with_input("batch_norm_backward", 0, floats(2, 3, 3)), "another size"),
    (with_input("batch_norm_backward", 3, floats(5)), "another size"),
    (with_integer("norm", 0, 3), "divide"),
    (with_integer("norm", 2, 0), "divide"),
    (with_integer("norm", 2, 5), "divide"),
    (with_integer("norm", 3, 2), "divide"),
    (with_input("norm", 1, floats(3)), "another size"),
    (with_integer("norm_backward", 4, 7), "coefficients"),
    (with_input("norm_backward", 0, floats(2, 6, 3)), "another size"),
    (with_input("norm_backward", 3, floats(2, 3)), "another size"),
    (with_input("rectifier_backward", 1, floats(6)), "another size"),
    (with_integer("smooth", 0, MAX), "of no kind"),
    (with_integer("smooth_backward", 0, 0), "of no kind"),
    (with_input("smooth_backward", 1, floats(8)), "another size"),
    (with_integer("pool", 0, OperationKind.ADD), "of no kind"),
    (with_integer("pool", 2, 3), "windows"),
    (with_integer("pool", 4, 0), "windows"),
    (with_integer("pool", 6, 2), "windows"),
    (replace(RIGHT["pool"], shape=(-1, 4, 2, 2)), "channels"),
    (replace(RIGHT["pool"], outputs="f-"), "leaves out"),
    (
        Node(
            "pool",
            (floats(1, 1, 300, 300),),
            "fH",
            integers=(MAX, 0, 300, 300, 1, 1, 0, 0),
            shape=(-1, 1, 1, 1),
        ),
        "too large",
    ),
    (with_input("pool_backward", 1, WINNERS + np.uint16(4)), "winner"),
    (with_input("pool_backward", 1, WINNERS[:1]), "another size"),
    (with_input("pool_backward", 1, None), "another size"),
    (replace(RIGHT["pool_backward"], shape=(-1, 3, 2**20, 2**20)), "shape"),
    (with_input("descend", 1, floats(6)), "another size"),
    (with_input("descend", 2, floats(2)), "another size"),
    (with_input("descend", 3, floats(0)), "without elements"),
]


@pytest.mark.parametrize(("node", "message"), MISSING + WRONG)
def test_what_does_not_fit_is_an_error(node: Node, message: str) -> None:
    with pytest.raises(Exception, match=message) as raised:
        node.run()
    assert type(raised.value).__module__.startswith("onnxruntime")


def test_a_winner_at_the_edge_of_an_image_has_less_room() -> None:
    """Of a window of 3 by 3 with padding, 2 by 2 pixels lie on the image in the corner."""
    node = Node(
        "pool_backward",
        (floats(1, 1, 2, 2), np.array([[[[3, 5], [5, 8]]]], np.uint16)),
        integers=(MAX, 0, 3, 3, 2, 2, 1, 1),
        shape=(-1, 1, 4, 4),
    )
    node.run()
    corner = np.array([[[[4, 0], [0, 0]]]], np.uint16)
    with pytest.raises(Exception, match="winner"):
        replace(node, inputs=(node.inputs[0], corner)).run()


def test_more_counts_than_inputs_keep_all() -> None:
    for kept in (200, 2**32, 2**63 - 1):
        with_input("layer_backward", 3, counts(0, kept)).run()


@pytest.mark.parametrize("operator", RIGHT)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_computed_with(operator: str, value: float) -> None:
    node = RIGHT[operator]
    inputs = [
        np.full_like(i, value) if i is not None and i.dtype == np.float32 else i
        for i in node.inputs
    ]
    replace(node, inputs=tuple(inputs)).run()


def test_random_arguments_end_in_a_result_or_an_error() -> None:
    random = Random(1)
    refused = 0
    for _ in range(400):
        node = random.choice(list(RIGHT.values()))
        kinds = [value.dtype for value in node.inputs if value is not None]
        inputs = [
            value
            if value is None or random.random() < 0.6
            else np.ones([random.randint(0, 4) for _ in range(random.randint(0, 5))], kind)
            for value, kind in zip(node.inputs, kinds, strict=True)
        ]
        integers = [
            random.choice((0, 1, 2, 3, 7, 65535, 2**31, 2**32 - 1)) if random.random() < 0.1 else i
            for i in node.integers
        ]
        shape = [random.randint(-1, 6) if random.random() < 0.1 else size for size in node.shape]
        changed = replace(node, inputs=tuple(inputs), integers=tuple(integers), shape=tuple(shape))
        try:
            changed.run()
        except Exception as error:
            if not type(error).__module__.startswith("onnxruntime"):
                raise
            refused += 1
    assert 50 < refused < 400
