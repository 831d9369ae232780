import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsyfed.edge_runtime.artifact import Artifact, Parameter
from sparsyfed.edge_runtime.budget import keep_counts
from sparsyfed.edge_runtime.errors import InputError
from sparsyfed.edge_runtime.format import ParameterKind

dimensions = st.tuples(
    st.integers(1, 64), st.integers(1, 64), st.sampled_from([1, 3, 5]), st.sampled_from([1, 3])
)
sparsities = st.floats(0.0, 1.0, exclude_max=True)


def layers(*shapes: tuple[int, int, int, int]) -> list[Parameter]:
    """Prunable weights of these dimensions, with a bias between them."""
    parameters = []
    for number, shape in enumerate(shapes):
        parameters.append(Parameter(ParameterKind.WEIGHT, 4, shape, f"{number}.weight"))
        parameters.append(Parameter(ParameterKind.DENSE, 1, (9, 1, 1, 1), f"{number}.bias"))
    return parameters


@given(st.lists(dimensions, min_size=1, max_size=6), sparsities)
def test_global_count_is_what_rounding_leaves(
    shapes: list[tuple[int, int, int, int]], sparsity: float
) -> None:
    parameters = layers(*shapes)
    positions = sum(p.count for p in parameters if p.kind is ParameterKind.WEIGHT)
    kept = positions - round(sparsity * positions)
    if kept == 0:
        with pytest.raises(InputError, match="keeps none"):
            keep_counts(parameters, sparsity, "global")
    else:
        assert keep_counts(parameters, sparsity, "global") == [kept]


@given(st.lists(dimensions, min_size=1, max_size=8), sparsities)
def test_layer_budgets_meet_the_sum(
    shapes: list[tuple[int, int, int, int]], sparsity: float
) -> None:
    parameters = layers(*shapes)
    positions = sum(p.count for p in parameters if p.kind is ParameterKind.WEIGHT)
    kept = positions - round(sparsity * positions)
    if kept < len(shapes):
        with pytest.raises(InputError, match=r"lower (sparsity|one)"):
            keep_counts(parameters, sparsity, "erk")
        return
    counts = keep_counts(parameters, sparsity, "erk")
    assert len(counts) == len(parameters)
    assert sum(counts) == kept
    for parameter, count in zip(parameters, counts, strict=True):
        if parameter.kind is ParameterKind.WEIGHT:
            assert 1 <= count <= parameter.count
        else:
            assert count == 0


def test_erk_shares_follow_the_formula_within_one_entry() -> None:
    shapes = [(32, 16, 3, 3), (64, 32, 3, 3), (100, 64, 1, 1)]
    parameters = layers(*shapes)
    counts = keep_counts(parameters, 0.9, "erk")[::2]
    scale = sum(counts) / sum(map(sum, shapes))
    for shape, count in zip(shapes, counts, strict=True):
        assert abs(count - scale * sum(shape)) < 1


def test_erk_caps_small_layers_and_gives_the_rest_to_the_others() -> None:
    shapes = [(4, 1, 3, 3), (64, 64, 3, 3)]
    counts = keep_counts(layers(*shapes), 0.5, "erk")[::2]
    positions = 36 + 64 * 64 * 9
    assert counts == [36, positions - round(0.5 * positions) - 36]


def test_erk_gives_a_starved_layer_one_entry() -> None:
    shapes = [(512, 512, 3, 3), (1, 1, 1, 1), (2, 2, 1, 1)]
    counts = keep_counts(layers(*shapes), 0.9999, "erk")[::2]
    assert min(counts) == 1
    assert counts[0] > 200


def test_fractions_go_to_the_larger_remainder_then_to_the_earlier_layer() -> None:
    assert keep_counts(layers((4, 4, 1, 1), (4, 4, 1, 1)), 1 - 7 / 32, "erk")[::2] == [4, 3]
    assert keep_counts(layers((4, 4, 1, 1), (8, 4, 1, 1)), 1 - 7 / 48, "erk")[::2] == [3, 4]


def test_mapping_gives_its_counts_and_leaves_other_layers_whole(classifier: Artifact) -> None:
    counts = keep_counts(classifier.parameters, 0.5, {"first.weight": 7, "head.weight": 12})
    assert counts == [7, 0, 0, 0, 0, 0, 36, 12, 0]


@pytest.mark.parametrize("count", [0, -1, 73])
def test_mapping_out_of_range_is_refused(classifier: Artifact, count: int) -> None:
    with pytest.raises(InputError, match=rf"first\.weight: got budget {count}, wanted 1 to 72"):
        keep_counts(classifier.parameters, 0.5, {"first.weight": count})


def test_mapping_of_unknown_layers_is_refused(classifier: Artifact) -> None:
    with pytest.raises(InputError, match=r"unknown layers first\.bias, nothing.*head\.weight"):
        keep_counts(classifier.parameters, 0.5, {"nothing": 1, "first.bias": 2})


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 95.0, float("nan")])
@pytest.mark.parametrize("budget", ["global", "erk", {}])
def test_sparsity_out_of_range_is_refused(
    classifier: Artifact, sparsity: float, budget: str | dict[str, int]
) -> None:
    with pytest.raises(InputError, match="sparsity"):
        keep_counts(classifier.parameters, sparsity, budget)


def test_unknown_budget_is_refused(classifier: Artifact) -> None:
    with pytest.raises(InputError, match="'uniform'"):
        keep_counts(classifier.parameters, 0.5, "uniform")
