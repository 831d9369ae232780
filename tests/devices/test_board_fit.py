"""What fits a board."""

import re
from pathlib import Path

import pytest

from sparsyfed.devices.board import MAX_PLACES, BoardFacts
from sparsyfed.devices.board_fit import MAX_HELD, examples_bytes, fit_on_board
from sparsyfed.devices.board_training import OwnExamples, refusal_of_board
from sparsyfed.edge_runtime.artifact import Artifact
from sparsyfed.edge_runtime.errors import ArenaError
from sparsyfed.edge_runtime.state import State


def test_all_examples_stay_where_there_is_room(artifact: Artifact, state: State) -> None:
    fit = fit_on_board(artifact, state.encode(), 8, 1 << 20, 100)
    assert (fit.held_examples, fit.gathered_examples) == (100, 8)
    assert fit.examples_bytes == examples_bytes(artifact, 108) == 108 * 4 * (6 + 1)
    held = fit.artifact_bytes + fit.examples_bytes
    assert fit.arena_limit <= (1 << 20) - held < fit.arena_limit + 4


def test_a_batch_that_one_request_cannot_name_is_declined_before_it_is_pulled(
    artifact: Artifact, state: State, tmp_path: Path
) -> None:
    artifact.save(tmp_path / "model.sfd")
    state.save(tmp_path / "model.sfs")
    facts = BoardFacts("roomy", 1 << 30, 4096, 0, 0, 0, 1)
    refuse = refusal_of_board(facts, OwnExamples(1000))
    given = tmp_path / "model.sfd", tmp_path / "model.sfs"
    assert refuse(*given, MAX_PLACES, 1 << 30) is None
    assert refuse(*given, MAX_PLACES + 1, 1 << 30) == "got batch size 505, a board takes up to 504"


def test_more_examples_than_a_place_can_name_come_by_the_batch(
    artifact: Artifact, state: State
) -> None:
    fit = fit_on_board(artifact, state.encode(), 8, 1 << 30, MAX_HELD + 1)
    assert (fit.held_examples, fit.gathered_examples) == (8, 0)


def test_what_is_wanted_fits_and_a_byte_less_does_not(artifact: Artifact, state: State) -> None:
    encoded = state.encode()
    with pytest.raises(ArenaError) as caught:
        fit_on_board(artifact, encoded, 8, 1000, 100)
    wanted = caught.value.wanted
    fit = fit_on_board(artifact, encoded, 8, wanted, 100)
    assert fit.held_examples == 8
    with pytest.raises(ArenaError) as caught:
        fit_on_board(artifact, encoded, 8, wanted - 4, 100)
    assert f"got a board with {wanted - 4} bytes" in str(caught.value)
    assert "4 are missing" in str(caught.value)


def test_a_refusal_names_the_largest_batch_size_that_fits(artifact: Artifact, state: State) -> None:
    with pytest.raises(ArenaError) as caught:
        fit_on_board(artifact, state.encode(), 64, 100, 100)
    memory = caught.value.wanted - 400
    with pytest.raises(
        ArenaError, match=r"400 are missing; batch size \d+ fits, a density"
    ) as caught:
        fit_on_board(artifact, state.encode(), 64, memory, 64)
    named = re.search(r"batch size (\d+) fits", str(caught.value))
    assert named is not None
    largest = int(named[1])
    assert fit_on_board(artifact, state.encode(), largest, memory, largest).held_examples == largest
    with pytest.raises(ArenaError):
        fit_on_board(artifact, state.encode(), largest + 1, memory, largest + 1)


def test_layers_are_updated_one_by_one_where_nothing_else_fits(
    artifact: Artifact, state: State
) -> None:
    encoded = state.encode()
    roomy = fit_on_board(artifact, encoded, 8, 1 << 20, 8)
    assert roomy.memory == "fast"
    with pytest.raises(ArenaError) as caught:
        fit_on_board(artifact, encoded, 8, 1000, 8)
    tight = fit_on_board(artifact, encoded, 8, caught.value.wanted, 8)
    assert tight.memory == "layerwise"
    assert tight.plan.arena_bytes < roomy.plan.arena_bytes
