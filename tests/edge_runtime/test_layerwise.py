"""Layers that are updated one by one: the bits of an update at the end, in less memory."""

from typing import Any

import numpy as np
import pytest
from clear_cases import states_of
from model_strategies import Model
from odd_models import every_operation, odd_model, short_signal
from plan_cases import SMALL, assert_sound, residual_chain

from sparsyfed.edge_runtime.errors import ArenaError, DivergedError, InputError
from sparsyfed.edge_runtime.kernels import available_kernels
from sparsyfed.edge_runtime.plan import plan
from sparsyfed.edge_runtime.session import Session

LAYERWISE: dict[str, Any] = {"memory": "layerwise"}
RATES = {"learning_rate": 0.05, "weight_decay": 1e-3}


def trained(model: Model, batch_size: int, steps: int = 4, **options: Any) -> tuple[Any, ...]:
    """Losses and state after some steps, in an arena that is touched to its end."""
    random = np.random.default_rng(0)
    with Session.open(model.artifact, model.state, batch_size, **options) as session:
        losses = [session.step(*model.batch(random, batch_size), **RATES) for _ in range(steps)]
        assert session.memory.arena_peak_bytes == session.memory.arena_bytes
        return losses, session.state(), session.evaluate(*model.batch(random, batch_size))


@pytest.mark.parametrize("kernels", available_kernels())
def test_steps_give_the_bits_of_one_update_at_the_end(kernels: str) -> None:
    for artifact in (residual_chain(2), every_operation(), short_signal()):
        model = states_of(artifact, 0.3)(0)
        for batch_size in (1, 18):
            wanted = trained(model, batch_size, kernels=kernels)
            assert trained(model, batch_size, kernels=kernels, **LAYERWISE) == wanted


@pytest.mark.parametrize("seed", range(8))
def test_steps_of_odd_models_have_the_same_bits(seed: int) -> None:
    model = states_of(odd_model(seed), 0.5)(seed)
    wanted = trained(model, 3, steps=1, kernels="portable")
    assert trained(model, 3, steps=1, kernels="portable", **LAYERWISE) == wanted


@pytest.mark.parametrize("blocks", [1, 2, 3, 4])
def test_no_gradient_outlives_its_layer(blocks: int) -> None:
    model = states_of(residual_chain(blocks), 0.5)(0)
    small, layerwise = (
        plan(model.artifact, model.state, 1, kernels="portable", **choice)
        for choice in (SMALL, LAYERWISE)
    )
    assert_sound(layerwise)
    assert layerwise.arena_bytes <= small.arena_bytes
    for buffer in layerwise.buffers:
        made_in = layerwise.steps[buffer.first_step].action
        if buffer.kind == "working_weight" and made_in == "backward":
            assert buffer.first_step == buffer.last_step


def test_a_limit_takes_the_least_work_that_fits() -> None:
    model = states_of(residual_chain(2), 0.5)(0)

    def planned(**options: Any) -> Any:
        return plan(model.artifact, model.state, 8, kernels="portable", **LAYERWISE, **options)

    least = planned()
    roomy = planned(arena_bytes=1 << 30)
    assert roomy.macs.recomputed == 0 < least.macs.recomputed
    assert planned(arena_bytes=least.arena_bytes).arena_bytes == least.arena_bytes
    with pytest.raises(ArenaError, match=f"wants {least.arena_bytes} at least"):
        planned(arena_bytes=least.arena_bytes - 1)


def test_there_are_no_gradients_to_ask_for() -> None:
    model = states_of(residual_chain(1), 0.5)(0)
    x, y = model.batch(np.random.default_rng(0), 2)
    with Session.open(model.artifact, model.state, 2, **LAYERWISE) as session:
        with pytest.raises(InputError, match="keeps no gradients"):
            session.gradients(x, y)
        session.step(x, y, **RATES)


def test_a_step_that_diverges_ends_the_training() -> None:
    model = states_of(residual_chain(1), 0.5)(0)
    x, y = model.batch(np.random.default_rng(0), 2)
    with Session.open(model.artifact, model.state, 2, **LAYERWISE) as session:
        with pytest.raises(DivergedError):
            session.step(x, y, learning_rate=3e38, weight_decay=3e38)
        for use in (
            lambda: session.step(x, y, **RATES),
            lambda: session.evaluate(x, y),
            lambda: session.update(0.5),
            session.state,
        ):
            with pytest.raises(DivergedError):
                use()


def test_a_loss_that_overflows_changes_nothing() -> None:
    model = states_of(short_signal(), 0.5)(0)
    x, y = model.batch(np.random.default_rng(0), 2)
    with Session.open(model.artifact, model.state, 2, **LAYERWISE) as session:
        with pytest.raises(DivergedError):
            session.step(x * np.float32(1e30), y, **RATES)
        assert session.state() == model.state
