"""The gate lets a right step through, and catches each of the faults that exports have had."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from engine_cases import BUILDERS, compiled, gate_cases, runner, traced
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from sparsyfed.edge_runtime.errors import VerificationError
from sparsyfed.edge_runtime.kept_inputs import input_sizes
from sparsyfed.export import gate
from sparsyfed.export import joint_graph as joint
from sparsyfed.export.batch_norm import DeviceBatchNorm
from sparsyfed.export.joint_graph import JointGraph, add_sgd


def faulty(
    graph: JointGraph, target: Any, replace: Callable[[GraphModule, Node], Any]
) -> JointGraph:
    """A copy of a graph, the first call of `target` replaced by what `replace` makes."""
    module = copy.deepcopy(graph.module)
    node = next(node for node in module.graph.nodes if node.target is target)
    with module.graph.inserting_before(node):
        node.replace_all_uses_with(replace(module, node))
    module.graph.eliminate_dead_code()
    module.recompile()
    return JointGraph(module, graph.inputs, graph.outputs, graph.layers)


@pytest.mark.parametrize("name", BUILDERS)
def test_right_steps_pass_strictly(name: str) -> None:
    artifact, graph = compiled(name), traced(name)
    steps = [runner(graph), gate.gradients_of_sgd(artifact, runner(add_sgd(graph)))]
    for step in steps:
        result = gate.verify(gate_cases(name), step, "graph")
        assert result.loss_error <= gate.STRICT
        assert result.median_error <= gate.STRICT
        assert result.worst_error <= gate.STRICT


def test_a_folded_weight_is_caught() -> None:
    graph = traced("odd_net")
    case = gate_cases("odd_net").case(0, 0)

    def fold(module: GraphModule, _: Node) -> Node:
        v = case.inputs["state.stem.weight"]
        module.register_buffer("folded", v.sign() * v.abs() ** 1.25)
        return module.graph.get_attr("folded")

    step = runner(faulty(graph, torch.ops.sparsyfed.powerprop.default, fold))
    with pytest.raises(VerificationError, match="relative error"):
        gate.verify(gate_cases("odd_net"), step, "graph")


def test_a_dropped_prune_site_is_caught_by_its_layer() -> None:
    step = runner(
        faulty(traced("mlp"), torch.ops.sparsyfed.prune.default, lambda _, node: node.args[0])
    )
    with pytest.raises(VerificationError, match=r"graph: gradient\.1\.weight has a relative error"):
        gate.verify(gate_cases("mlp"), step, "graph")


def test_swapped_counts_of_two_layers_are_caught() -> None:
    step = runner(traced("resnet8"))

    def swapped(inputs: Any) -> Any:
        keep = inputs["keep"].clone()
        keep[[1, 2]] = keep[[2, 1]]  # two layers whose inputs have the same size
        return step({**inputs, "keep": keep})

    with pytest.raises(VerificationError, match=r"layer1\.0\.conv[12]\.weight"):
        gate.verify(gate_cases("resnet8"), swapped, "graph")


@pytest.mark.parametrize(("place", "layer"), [(0, "1.weight"), (-1, "5.weight")])
def test_counts_of_none_and_of_all_taken_for_each_other_are_caught(place: int, layer: str) -> None:
    step = runner(traced("mlp"))
    sizes = input_sizes(compiled("mlp").native)

    def mistaken(inputs: Any) -> Any:
        keep, whole = inputs["keep"].clone(), len(inputs["x"]) * sizes[place]
        keep[place] = {0: whole, whole: 0}.get(int(keep[place]), int(keep[place]))
        return step({**inputs, "keep": keep})

    with pytest.raises(VerificationError, match=f"gradient.{layer}"):
        gate.verify(gate_cases("mlp"), mistaken, "graph")


def test_a_step_that_is_wrong_for_one_example_is_caught() -> None:
    step = runner(traced("narrow_net"))
    name = "new_state.1.running_var"

    def unbiased(inputs: Any) -> Any:
        results, count = dict(step(inputs)), torch.tensor(float(len(inputs["x"])))
        results[name] = results[name] * (count - 1) / (count - 1)
        return results

    with pytest.raises(VerificationError, match="not finite"):
        gate.verify(gate_cases("narrow_net"), unbiased, "graph")


def test_swapped_gradients_of_two_layers_are_caught() -> None:
    step = runner(traced("resnet8"))
    one, other = "gradient.layer1.0.conv1.weight", "gradient.layer1.0.conv2.weight"

    def swapped(inputs: Any) -> Any:
        results = dict(step(inputs))
        results[one], results[other] = results[other], results[one]
        return results

    with pytest.raises(VerificationError, match=r"layer1\.0\.conv[12]\.weight"):
        gate.verify(gate_cases("resnet8"), swapped, "graph")


def test_a_batch_norm_in_inference_mode_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(
            DeviceBatchNorm, "train", lambda self, _mode=True: nn.Module.train(self, False)
        )
        step = runner(joint.joint_graph(compiled("odd_net")))
    with pytest.raises(VerificationError, match="relative error"):
        gate.verify(gate_cases("odd_net"), step, "graph")


def test_statistics_that_stand_still_are_caught() -> None:
    step = runner(traced("odd_net"))

    def still(inputs: Any) -> Any:
        return {**step(inputs), "new_state.norm.running_mean": inputs["state.norm.running_mean"]}

    with pytest.raises(VerificationError, match=r"norm\.running_mean"):
        gate.verify(gate_cases("odd_net"), still, "graph")


def naive_backward(v: Tensor, d_weight: Tensor, beta: float) -> Tensor:
    """The gradient of v·|v|^(β−1) as automatic differentiation has it."""
    v = v.detach().requires_grad_()
    weight = v * v.abs() ** (beta - 1)
    return torch.autograd.grad(weight, v, d_weight)[0]


def test_nan_at_a_zero_of_v_is_caught() -> None:
    graph = faulty(
        traced("signal_net"),
        torch.ops.sparsyfed.powerprop_backward.default,
        lambda module, node: module.graph.call_function(naive_backward, node.args),
    )
    with pytest.raises(VerificationError, match="not finite"):
        gate.verify(gate_cases("signal_net"), runner(graph), "graph")


def test_a_gradient_at_a_zero_of_v_is_caught() -> None:
    step = runner(traced("mlp"))

    def revived(inputs: Any) -> Any:
        results = dict(step(inputs))
        gradient = results["gradient.5.weight"].clone()
        gradient[inputs["state.5.weight"] == 0] = 1e-30
        return {**results, "gradient.5.weight": gradient}

    with pytest.raises(VerificationError, match=r"5\.weight is not zero everywhere v is"):
        gate.verify(gate_cases("mlp"), revived, "graph")


def test_a_missing_gradient_is_caught_by_name() -> None:
    step = runner(traced("mlp"))

    def less(inputs: Any) -> Any:
        return {name: value for name, value in step(inputs).items() if name != "gradient.3.bias"}

    with pytest.raises(VerificationError, match=r"lacks gradient\.3\.bias"):
        gate.verify(gate_cases("mlp"), less, "graph")


def test_a_wrong_evaluation_is_caught() -> None:
    artifact, cases = compiled("odd_net"), gate_cases("odd_net")
    evaluate = runner(joint.evaluation_graph(artifact))
    gate.verify_evaluation(artifact, cases, evaluate, "graph")

    def stale(inputs: Any) -> Any:
        mean = inputs["state.norm.running_mean"]
        return evaluate({**inputs, "state.norm.running_mean": torch.zeros_like(mean)})

    with pytest.raises(VerificationError, match="graph: loss has a relative error"):
        gate.verify_evaluation(artifact, cases, stale, "graph")

    def counts_one_more(inputs: Any) -> Any:
        results = evaluate(inputs)
        return {**results, "correct": results["correct"] + 1}

    with pytest.raises(VerificationError, match="right answers"):
        gate.verify_evaluation(artifact, cases, counts_one_more, "graph")


def disturbed(times: int) -> gate.Run:
    """A step whose first results have an error of a thousandth in one gradient."""
    step, left = runner(traced("mlp")), [times]

    def run(inputs: Any) -> Any:
        results, left[0] = dict(step(inputs)), left[0] - 1
        if left[0] >= 0:
            results["gradient.3.weight"] = results["gradient.3.weight"] * 1.001
        return results

    return run


def test_a_batch_on_which_rounding_turned_something_is_not_the_last_word() -> None:
    result = gate.verify(gate_cases("mlp"), disturbed(2), "graph")
    assert result.worst_error <= gate.STRICT


def test_the_same_error_on_every_batch_is_one() -> None:
    with pytest.raises(
        VerificationError, match=r"gradient\.3\.weight has a relative error of 0\.001"
    ):
        gate.verify(gate_cases("mlp"), disturbed(100), "graph")
