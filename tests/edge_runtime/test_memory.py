"""Plans of less memory: what is computed again gives the same bits, in the memory that was planned."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from clear_cases import states_of
from model_strategies import ARCHITECTURES, Model, ModelBuilder, random_model
from odd_models import every_operation, odd_model
from plan_cases import SMALL, assert_sound, residual_chain

from sparsyfed.edge_runtime.artifact import Artifact, Tensor
from sparsyfed.edge_runtime.errors import ArenaError
from sparsyfed.edge_runtime.format import OperationKind
from sparsyfed.edge_runtime.kernels import available_kernels
from sparsyfed.edge_runtime.plan import MemoryPlan, plan
from sparsyfed.edge_runtime.session import Session

EVERYTHING_FITS = 1 << 32
WHOLE: dict[str, Any] = {"arena_bytes": EVERYTHING_FITS}
FAST: dict[str, Any] = {"memory": "fast"}


def smooth_chain(layers: int) -> Artifact:
    """Return linear layers with smooth activations, normalised, each added to its input."""
    net = ModelBuilder(Tensor(24, 1, 1, 1))
    x = 0
    for _ in range(layers):
        y = net.activation(net.linear(net.layer_norm(x, 24), 48), OperationKind.GELU)
        y = net.linear(y, 24)
        x = net.add(y, x) if x else y
    net.linear(x, 3)
    return net.finish()


MODELS = {
    "residual": residual_chain(3),
    "group norms": residual_chain(2, norm="group"),
    "smooth": smooth_chain(3),
    "every operation": every_operation(),
}


def choices(model: Model, batch_size: int, kernels: str) -> list[dict[str, Any]]:
    """List options for plans from the one that keeps everything to the least memory."""
    whole, least = (
        plan(model.artifact, model.state, batch_size, kernels=kernels, **options).arena_bytes
        for options in (WHOLE, SMALL)
    )
    between = [least + (whole - least) * part // 6 for part in range(7)]
    limits = [EVERYTHING_FITS, *between]
    return [*({"arena_bytes": limit} for limit in limits), FAST, SMALL]


def assert_same_results(model: Model, batch_size: int, examples: int, kernels: str) -> set[str]:
    """Loss, gradients and trained model are the same for all plans. Returns what steps there were."""
    x, y = model.batch(np.random.default_rng(0), examples)
    expected = None
    actions: set[str] = set()
    for options in choices(model, batch_size, kernels):
        planned = plan(model.artifact, model.state, batch_size, kernels=kernels, **options)
        assert_sound(planned)
        actions |= {step.action for step in planned.steps}
        limit = options.get("arena_bytes", EVERYTHING_FITS)
        assert planned.arena_bytes <= limit
        with Session.open(
            model.artifact, model.state, batch_size, kernels=kernels, **options
        ) as session:
            loss, gradients = session.gradients(x, y)
            session.step(x, y, learning_rate=0.05)
            evaluated = session.evaluate(x, y)
            results = (loss, gradients, evaluated, session.state())
            assert session.memory.arena_bytes == planned.arena_bytes
            if examples == batch_size:
                assert session.memory.arena_peak_bytes == planned.arena_bytes
                assert session.counters.recomputed == 2 * planned.macs.recomputed
        expected = expected or results
        assert results == expected, options
    return actions


@pytest.mark.parametrize("kernels", available_kernels())
@pytest.mark.parametrize("name", MODELS)
def test_plans_of_all_sizes_give_the_same_bits(name: str, kernels: str) -> None:
    actions: set[str] = set()
    for density in (1.0, 0.2):
        model = states_of(MODELS[name], density)(0)
        for batch_size in (1, 18):
            actions |= assert_same_results(model, batch_size, batch_size, kernels)
        assert_same_results(model, 4, 3, kernels)
    assert "restore" in actions
    assert name in ("every operation", "smooth") or "pack" in actions


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_plans_of_random_models_give_the_same_bits(architecture: str) -> None:
    for seed in range(3):
        model = random_model(architecture, seed, 0.3, empty=seed == 2)
        assert_same_results(model, 5, 5, "portable")


@pytest.mark.parametrize("seed", range(12))
def test_plans_of_odd_models_give_the_same_bits(seed: int) -> None:
    assert_same_results(states_of(odd_model(seed), 0.5)(seed), 3, 3, "portable")


def test_less_memory_costs_more_work() -> None:
    model = states_of(MODELS["residual"], 0.2)(0)
    whole, fast, small = (
        plan(model.artifact, model.state, 16, **options) for options in (WHOLE, FAST, SMALL)
    )
    assert small.arena_bytes < fast.arena_bytes < whole.arena_bytes
    assert small.transient_bytes < 0.7 * whole.transient_bytes
    assert whole.macs.recomputed == 0
    assert 0 < small.macs.recomputed < 1.5 * small.macs.forward
    assert small.macs.total == small.macs.recomputed + whole.macs.total


@pytest.mark.parametrize("kernels", ["portable", None])
@pytest.mark.parametrize("name", sorted(MODELS))
def test_more_memory_never_means_more_work(name: str, kernels: str | None) -> None:
    model = states_of(MODELS[name], 0.2)(0)

    def planned(**options: Any) -> MemoryPlan:
        return plan(model.artifact, model.state, 8, kernels=kernels, **options)

    whole, fast, small = (planned(**options) for options in (WHOLE, FAST, SMALL))
    assert planned(arena_bytes=fast.arena_bytes).macs.recomputed <= fast.macs.recomputed
    again = None
    for part in range(17):
        limit = small.arena_bytes + (whole.arena_bytes - small.arena_bytes) * part // 16
        found = planned(arena_bytes=limit)
        assert found.arena_bytes <= limit
        assert again is None or found.macs.recomputed <= again
        again = found.macs.recomputed
    assert again == 0
    assert found.arena_bytes == whole.arena_bytes


def test_a_limit_below_the_least_memory_says_what_is_missing() -> None:
    model = states_of(MODELS["residual"], 0.2)(0)
    least = plan(model.artifact, model.state, 4, memory="small").arena_bytes
    assert plan(model.artifact, model.state, 4, arena_bytes=least).arena_bytes <= least
    for opened in (plan, Session.open):
        with pytest.raises(ArenaError, match=f"got an arena of {least - 1} bytes") as caught:
            opened(model.artifact, model.state, 4, arena_bytes=least - 1)
        assert (caught.value.got, caught.value.wanted) == (least - 1, least)


def test_states_of_the_same_sizes_have_the_same_plan() -> None:
    one, other = (states_of(MODELS["residual"], 0.2)(seed) for seed in (0, 1))
    assert [len(tensor.value) for tensor in one.state.tensors] == [
        len(tensor.value) for tensor in other.state.tensors
    ]
    for memory in ("fast", "small"):
        plans = [plan(model.artifact, model.state, 8, memory=memory) for model in (one, other)]
        assert plans[0].buffers == plans[1].buffers
        assert plans[0].steps == plans[1].steps


def test_a_layer_runs_again_only_before_its_backward() -> None:
    model = states_of(MODELS["residual"], 0.2)(0)
    planned = plan(model.artifact, model.state, 16, memory="small")
    backward = {
        step.operation: at for at, step in enumerate(planned.steps) if step.action == "backward"
    }
    runs = Counter(step.operation for step in planned.steps if step.action == "restore")
    assert runs
    for at, step in enumerate(planned.steps):
        if step.action in ("restore", "pack"):
            assert at < backward[step.operation]


def test_a_long_chain_is_planned_in_bounded_time_and_memory() -> None:
    net = ModelBuilder(Tensor(4, 4, 4, 3))
    x = 0
    for _ in range(150):
        x = net.activation(net.batch_norm(net.convolution(x, 4, (1, 1))), OperationKind.RELU)
    net.linear(net.reshape(x), 3)
    model = states_of(net.finish(), 0.5)(0)
    whole = plan(model.artifact, model.state, 16, arena_bytes=EVERYTHING_FITS)
    small = plan(model.artifact, model.state, 16, memory="small")
    assert small.arena_bytes < whole.arena_bytes
