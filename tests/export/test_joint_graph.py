"""The joint graph computes what the eager reference does, to the bit."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from engine_cases import (
    BUILDERS,
    batch,
    compiled,
    eager,
    eager_loss,
    inputs,
    runner,
    state_at,
    traced,
)
from torch import Tensor, nn

from sparsyfed import export
from sparsyfed.edge_runtime.errors import UnsupportedOperationError
from sparsyfed.export import joint_graph as joint
from sparsyfed.export.joint_graph import add_sgd, evaluation_graph, joint_graph


@pytest.mark.parametrize("name", BUILDERS)
def test_loss_gradients_and_statistics_are_those_of_the_eager_reference(name: str) -> None:
    artifact = compiled(name)
    step = runner(traced(name))
    for density, examples in ((1.0, 2), (0.1, 5)):
        state = state_at(artifact, density)
        reference = eager(artifact, state)
        x, y = batch(artifact, examples, seed=1)
        results = step(inputs(artifact, reference, state, x, y))
        loss = eager_loss(artifact, reference, x, y)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.testing.assert_close(results["loss"], loss.detach(), rtol=0, atol=0)
        for key, parameter in reference.named_parameters():
            assert parameter.grad is not None
            assert torch.equal(results[f"gradient.{key}"], parameter.grad), key
        for key, buffer in reference.named_buffers():
            if not key.endswith("num_batches_tracked"):
                assert torch.equal(results[f"new_state.{key}"], buffer), key


def test_a_step_of_sgd_follows_the_optimiser_of_pytorch_and_keeps_zeros() -> None:
    artifact = compiled("odd_net")
    step = runner(add_sgd(traced("odd_net")))
    state = state_at(artifact, 0.1)
    reference = eager(artifact, state)
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1, weight_decay=1e-3)
    rates = {"learning_rate": torch.tensor(0.1), "weight_decay": torch.tensor(1e-3)}
    for seed in range(3):
        x, y = batch(artifact, 6, seed)
        results = step({**inputs(artifact, reference, state, x, y), **rates})
        optimizer.zero_grad()
        eager_loss(artifact, reference, x, y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        for key, parameter in reference.named_parameters():
            got = results[f"new_state.{key}"]
            assert torch.equal(got == 0, parameter == 0), key
            torch.testing.assert_close(got, parameter.detach(), rtol=1e-6, atol=1e-7)


def test_evaluation_counts_right_answers_with_running_statistics() -> None:
    artifact = compiled("resnet8")
    state = state_at(artifact, 0.1)
    served = export.to_inference(artifact.model, state)
    evaluate = runner(evaluation_graph(artifact))
    for examples in (1, 40):
        x, y = batch(artifact, examples, seed=2)
        named = inputs(artifact, eager(artifact, state), state, x, y)
        results = evaluate(named)
        logits = served(x)
        torch.testing.assert_close(results["loss"], nn.functional.cross_entropy(logits, y))
        assert int(results["correct"]) == int((logits.argmax(1) == y).sum())


def test_every_layer_has_a_site_with_its_name_and_count() -> None:
    graph = traced("resnet8")
    sites = [
        node
        for node in graph.module.graph.nodes
        if node.target is torch.ops.sparsyfed.prune.default
    ]
    assert sorted(site.args[2] for site in sites) == sorted(graph.layers)
    for site in sites:
        assert site.args[1].args[1:] == (0, graph.layers.index(site.args[2]))


def test_a_graph_without_a_site_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = compiled("mlp")
    site = joint._prune_site

    def dropped(keep: Tensor, place: int, name: str) -> joint.PruneSite:
        return (lambda x, _: x) if place == 1 else site(keep, place, name)

    monkeypatch.setattr(joint, "_prune_site", dropped)
    with pytest.raises(UnsupportedOperationError, match=r"3\.weight"):
        joint_graph(artifact)


def test_a_site_that_reaches_the_output_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, pruned: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return nn.functional.linear(pruned, weight, bias)

    # By its full name, since `export.powerprop` is the function.
    method = importlib.import_module("sparsyfed.export.powerprop")
    monkeypatch.setattr(method._PrunedLinear, "forward", staticmethod(forward))
    with pytest.raises(UnsupportedOperationError, match=r"1\.weight"):
        joint_graph(compiled("mlp"))
