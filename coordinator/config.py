"""The configuration of a job: one TOML file, parsed and checked once.

`example.toml` beside this module is a complete, commented file. Paths are relative to the file that names them.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

from sparsyfed.coordinator.schedule import learning_rate, update_sparsity
from sparsyfed.edge_runtime.errors import ConfigurationError, FormatError
from sparsyfed.edge_runtime.json_message import (
    choice,
    indices,
    integer,
    number,
    optional,
    refuse,
    text,
)
from sparsyfed.edge_runtime.messages import BlockBytes, Budget, Name

_MAX_COUNT = 2**32 - 1
_MAX_SECONDS = 1e9


def _path(name: str, value: object) -> object:
    if not isinstance(value, str | Path) or not str(value):
        raise refuse(name, value, "a path")
    return Path(value)


def _devices(name: str, value: object) -> object:
    if value == "all":
        return None
    if isinstance(value, str):
        raise refuse(name, value, '"all" or an integer >= 1')
    return integer(1, _MAX_COUNT)(name, value)


_seconds = number(0, _MAX_SECONDS, above=True)
_line = text(500)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobConfig:
    """`[job]`: what is trained. Exactly one of `model`, `artifact` and `bundle` is given."""

    name: Name  # identifies the job in messages and in the store
    rounds: Annotated[int, integer(1, 2**31 - 1)]
    seed: Annotated[int, integer(0, 2**63 - 1)] = 0  # of initialisation, selection, shuffling
    model: Annotated[str | None, optional(_line)] = None  # built-in name or package.module:function
    # Shape of one example for a model of one's own; by default that of the held-out data.
    input_shape: Annotated[
        tuple[int, ...] | None, optional(indices(3, integer(1, 2**31 - 1), least=1))
    ] = None
    # Of a model; an artifact has its own.
    loss: Annotated[str, choice("cross_entropy", "mse")] = "cross_entropy"
    artifact: Annotated[Path | None, optional(_path)] = None  # a compiled .sfd file
    # Initial .sfs file, needed with an artifact.
    state: Annotated[Path | None, optional(_path)] = None
    bundle: Annotated[Path | None, optional(_path)] = None  # folder of `sparsyfed export`
    # Of the bundle, those that are offered to devices; by default all.
    targets: Annotated[tuple[str, ...] | None, optional(indices(16, _line, least=1))] = None
    beta: Annotated[float, number(1, 16)] = 1.25  # exponent of a model; an artifact has its own
    sparsity: Annotated[float, number(0, 1, below=True)] = 0.95  # share of prunable weights at zero
    budget: Budget = "global"  # global ranking, "erk" shares, or counts by layer name
    first_round: Annotated[str, choice("dense", "presparsified")] = "dense"
    # Rounds that train everything and send it; then the coordinator prunes.
    dense_rounds: Annotated[int, integer(0, 2**31 - 1)] = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """`[training]`: what a device does in a round."""

    # Where the decay begins; it ends at the other one in the last round. Default: no decay.
    learning_rate: Annotated[float, number(0, 1e6, above=True)]
    final_learning_rate: Annotated[float | None, optional(number(0, 1e6, above=True))] = None
    batch_size: Annotated[int, integer(1, 65_535)] = 16
    epochs: Annotated[int, integer(1, 1_000)] = 1
    weight_decay: Annotated[float, number(0, 1e6)] = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundConfig:
    """`[round]`: how a round is run."""

    # Updates that are wanted; "all" (None here) is one of every admitted device.
    devices_per_round: Annotated[int | None, _devices] = None
    over_selection: Annotated[float, number(1, 10)] = 1.3  # offers per wanted update
    # Share of the wanted updates that suffices at the deadline.
    quorum: Annotated[float, number(0, 1, above=True)] = 0.8
    deadline_s: Annotated[float, _seconds] = 600.0  # from the first offer of an attempt
    offer_timeout_s: Annotated[float, _seconds] = 30.0  # an unanswered offer goes to another device
    # Wait for this many before the first round.
    minimum_devices: Annotated[int, integer(1, _MAX_COUNT)] = 1
    register_timeout_s: Annotated[float, _seconds] = 300.0  # wait at most this long for devices
    # Between a failed attempt and the next.
    retry_delay_s: Annotated[float, number(0, _MAX_SECONDS)] = 5.0
    # Of one round, before the job gives up.
    maximum_attempts: Annotated[int, integer(1, _MAX_COUNT)] = 5
    norm_bound: Annotated[float, number(1, 1e9)] = 10.0  # of an update, in norms of its base


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerConfig:
    """`[broker]`: the MQTT 5 broker."""

    host: Annotated[str, text(255)] = "127.0.0.1"
    port: Annotated[int, integer(1, 65_535)] = 1883


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferConfig:
    """`[transfer]`: how objects travel."""

    block_bytes: BlockBytes = 65536  # a device may ask for less


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationConfig:
    """`[evaluation]`: held-out data, evaluated after each round; both files or none."""

    x: Annotated[Path | None, optional(_path)] = None  # float32 .npy, examples first
    y: Annotated[Path | None, optional(_path)] = None  # int32 or int64 labels, or float32 targets


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreConfig:
    """`[store]`: the journal of the job, from which a restarted coordinator goes on."""

    directory: Annotated[Path, _path]
    keep_states: Annotated[int, integer(0, _MAX_COUNT)] = 2  # newest states kept; 0 keeps all


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """A whole configuration file."""

    job: JobConfig
    training: TrainingConfig
    round: RoundConfig
    broker: BrokerConfig
    transfer: TransferConfig
    evaluation: EvaluationConfig
    store: StoreConfig

    @classmethod
    def load(cls, path: str | Path) -> "Configuration":
        """Configuration in this TOML file. Raises ConfigurationError: file, key, what was got and wanted."""
        path = Path(path)
        try:
            data = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigurationError(f"{path}: {error.strerror}") from error
        except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigurationError(f"{path}: {error}") from error
        return cls.from_mapping(data, source=str(path), folder=path.parent)

    @classmethod
    def from_mapping(
        cls, data: Mapping[str, Any], *, source: str = "configuration", folder: str | Path = "."
    ) -> "Configuration":
        """Configuration from the tables of a TOML file, given as a mapping; `folder` is where relative paths begin."""
        sections = get_type_hints(cls)
        unknown = sorted(set(data) - set(sections))
        if unknown:
            raise ConfigurationError(
                f"{source}: got a table or key {unknown[0]!r}, wanted one of {', '.join(sections)}"
            )
        parsed = {
            name: _parse_section(section, name, data.get(name, {}), source, Path(folder))
            for name, section in sections.items()
        }
        configuration = cls(**parsed)
        _check_combinations(configuration, source)
        return configuration

    def learning_rate(self, round_number: int) -> float:
        """Learning rate of this round of the job."""
        initial, final = self.training.learning_rate, self.training.final_learning_rate
        return learning_rate(round_number, self.job.rounds, initial, final or initial)

    def sparsity(self, round_number: int) -> float:
        """Sparsity of the updates of this round of the job."""
        return update_sparsity(round_number, self.job.dense_rounds, self.job.sparsity)


def _parse_section(section: Any, name: str, data: object, source: str, folder: Path) -> Any:
    if not isinstance(data, Mapping):
        raise ConfigurationError(f"{source}: {name}: got {data!r}, wanted a table [{name}]")
    known: dict[str, Field[Any]] = {field.name: field for field in fields(section)}
    hints = get_type_hints(section, include_extras=True)
    for key in data:
        if key not in known:
            raise ConfigurationError(
                f"{source}: [{name}] {key}: got an unknown key, wanted one of {', '.join(known)}"
            )
    values: dict[str, object] = {}
    for key, field in known.items():
        if key not in data:
            if field.default is MISSING:
                raise ConfigurationError(
                    f"{source}: [{name}] {key}: got nothing, wanted a value: it has no default"
                )
            continue
        check = next(argument for argument in get_args(hints[key])[1:] if callable(argument))
        try:
            value = check(f"[{name}] {key}", data[key])
        except FormatError as error:
            raise ConfigurationError(f"{source}: {error}") from error
        values[key] = folder / value if isinstance(value, Path) else value
    return section(**values)


def _check_combinations(configuration: Configuration, source: str) -> None:
    job, evaluation = configuration.job, configuration.evaluation
    given = [key for key in ("model", "artifact", "bundle") if getattr(job, key) is not None]
    if len(given) != 1:
        raise ConfigurationError(
            f"{source}: [job] model, artifact, bundle: got {' and '.join(given) or 'none'}, "
            "wanted exactly one of them"
        )
    if job.targets is not None and job.bundle is None:
        raise ConfigurationError(f"{source}: [job] targets: they are those of a bundle: name one")
    if (job.artifact is None) != (job.state is None):
        raise ConfigurationError(
            f"{source}: [job] state: an artifact holds no weights: wanted artifact and state together"
        )
    if job.dense_rounds >= job.rounds:
        raise ConfigurationError(
            f"{source}: [job] dense_rounds: got {job.dense_rounds} of {job.rounds} rounds, "
            "wanted fewer: what comes after them is sparse"
        )
    if job.dense_rounds > 0 and job.first_round != "dense":
        raise ConfigurationError(
            f"{source}: [job] dense_rounds: got {job.dense_rounds} with first_round = "
            f'"{job.first_round}", wanted "dense"'
        )
    if (evaluation.x is None) != (evaluation.y is None):
        raise ConfigurationError(
            f"{source}: [evaluation] x, y: got one of them, wanted both or none"
        )
