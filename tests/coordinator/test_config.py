from pathlib import Path
from typing import Any

import pytest

from sparsyfed.coordinator import Configuration
from sparsyfed.coordinator import config as config_module
from sparsyfed.edge_runtime import ConfigurationError

MINIMAL: dict[str, dict[str, Any]] = {
    "job": {"name": "j", "rounds": 4, "model": "mlp"},
    "training": {"learning_rate": 0.1},
    "store": {"directory": "store"},
}

OTHERS = ("artifact", "state", "bundle", "targets", "input_shape")  # beside a built-in model


def with_value(table: str, key: str, value: Any) -> dict[str, Any]:
    data: dict[str, dict[str, Any]] = {name: dict(content) for name, content in MINIMAL.items()}
    data.setdefault(table, {})[key] = value
    return data


def test_minimal_file_has_the_documented_defaults(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_text(
        '[job]\nname = "j"\nrounds = 4\nmodel = "mlp"\n[training]\nlearning_rate = 0.1\n'
        '[store]\ndirectory = "store"\n'
    )
    config = Configuration.load(path)
    assert config.training.batch_size == 16
    assert config.training.weight_decay == 1e-3
    assert config.round.over_selection == 1.3
    assert config.round.devices_per_round is None
    assert config.store.directory == tmp_path / "store"
    assert config.learning_rate(1) == config.learning_rate(4) == pytest.approx(0.1)


def test_the_example_names_every_key_with_its_default(tmp_path: Path) -> None:
    example = Path(config_module.__file__).parent / "example.toml"
    text = example.read_text()
    config = Configuration.load(example)
    for table in ("job", "training", "round", "broker", "transfer", "evaluation", "store"):
        for key in type(getattr(config, table)).__dataclass_fields__:
            assert f"{key} = " in text, f"[{table}] {key} is not in example.toml"
    # A comment that shows a default shows the real one.
    shown = []
    for line in text.split("# A budget by hand")[0].splitlines():
        code = line.removeprefix("# ")
        alternative = any(f"# {key} =" in line for key in OTHERS)
        shown.append(line if alternative or " = " not in code else code)
    whole = tmp_path / "example.toml"
    whole.write_text("\n".join(shown))
    loaded = Configuration.load(whole)
    for table in ("job", "training", "round", "broker", "transfer"):
        assert getattr(loaded, table) == getattr(config, table)


@pytest.mark.parametrize(
    ("table", "key", "value", "message"),
    [
        ("job", "rounds", 0, r"\[job\] rounds: got 0, wanted an integer from 1"),
        ("job", "rounds", True, r"\[job\] rounds: got True"),
        ("job", "name", "a/b", r"\[job\] name: got 'a/b', wanted a name"),
        ("job", "sparsity", 1.0, r"\[job\] sparsity: got 1.0, wanted a finite number >= 0 and < 1"),
        ("job", "budget", "even", r"\[job\] budget: got 'even', wanted one of global, erk"),
        ("job", "budget", {"a": -1}, r"\[job\] budget\['a'\]: got -1"),
        ("job", "first_round", "sparse", r"\[job\] first_round: got 'sparse'"),
        ("job", "dense_rounds", 4, r"\[job\] dense_rounds: got 4 of 4 rounds, wanted fewer"),
        ("job", "speed", 3, r"\[job\] speed: got an unknown key, wanted one of name, rounds"),
        ("job", "artifact", "a.sfd", "got model and artifact, wanted exactly one"),
        ("job", "bundle", "out", "got model and bundle, wanted exactly one"),
        ("job", "targets", ["onnx"], "they are those of a bundle"),
        ("job", "targets", [], r"\[job\] targets: got \[\], wanted a list of 1"),
        ("job", "state", "a.sfs", "wanted artifact and state together"),
        ("job", "input_shape", [0], r"\[job\] input_shape\[0\]: got 0"),
        ("training", "learning_rate", 0, r"\[training\] learning_rate: got 0"),
        ("training", "learning_rate", "fast", "got 'fast', wanted a finite number > 0"),
        ("round", "devices_per_round", "some", "got 'some', wanted \"all\" or an integer"),
        ("round", "quorum", 0, r"\[round\] quorum: got 0"),
        ("round", "over_selection", 0.9, r"\[round\] over_selection: got 0.9"),
        ("broker", "port", 70000, r"\[broker\] port: got 70000"),
        ("transfer", "block_bytes", 1, r"\[transfer\] block_bytes: got 1"),
        ("evaluation", "x", "x.npy", "got one of them, wanted both or none"),
        ("store", "directory", 3, r"\[store\] directory: got 3, wanted a path"),
        ("brokr", "host", "h", "got a table or key 'brokr', wanted one of job, training"),
    ],
)
def test_a_bad_value_is_named_with_file_key_got_and_wanted(
    table: str, key: str, value: Any, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        Configuration.from_mapping(with_value(table, key, value), source="watch.toml")
    assert str(caught.value).startswith("watch.toml: ")


def test_missing_key_table_and_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"\[job\] name: got nothing"):
        Configuration.from_mapping({})
    with pytest.raises(ConfigurationError, match=r"wanted a table \[job\]"):
        Configuration.from_mapping({"job": 3})
    with pytest.raises(ConfigurationError) as caught:
        Configuration.load(tmp_path / "absent.toml")
    assert str(caught.value) == f"{tmp_path / 'absent.toml'}: No such file or directory"
    broken = tmp_path / "broken.toml"
    broken.write_text("[job\n")
    with pytest.raises(ConfigurationError, match=r"broken.toml"):
        Configuration.load(broken)


def test_learning_rate_falls_to_its_final_value() -> None:
    config = Configuration.from_mapping(with_value("training", "final_learning_rate", 0.001))
    rates = [config.learning_rate(t) for t in range(1, 5)]
    assert rates == pytest.approx([0.1 * (0.01 ** (t / 4)) for t in range(1, 5)])
    assert rates[-1] == pytest.approx(0.001)


def test_updates_are_sparse_after_the_dense_rounds() -> None:
    config = Configuration.from_mapping(with_value("job", "dense_rounds", 2))
    assert [config.sparsity(t) for t in range(1, 5)] == [0.0, 0.0, 0.95, 0.95]


def test_dense_rounds_begin_with_a_dense_state() -> None:
    data = with_value("job", "dense_rounds", 2)
    data["job"]["first_round"] = "presparsified"
    with pytest.raises(
        ConfigurationError, match='got 2 with first_round = "presparsified", wanted'
    ):
        Configuration.from_mapping(data)
