"""The folder of `sparsyfed export` as a job uses it: the model, and its exports for other engines."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsyfed.edge_runtime import Artifact, State
from sparsyfed.edge_runtime.errors import ConfigurationError
from sparsyfed.edge_runtime.messages import MAX_BLOCK_BYTES, Export, ExportFile
from sparsyfed.edge_runtime.transfer import object_reference

MANIFEST_NAME = "manifest.json"
MEASURED_NAME = "measured.json"
NATIVE = "native"


@dataclass(frozen=True, slots=True)
class EngineExport:
    """What a device with another engine than the native core trains with.

    `files` maps their names in the folder of the export to their bytes; `opened` is the one that a session takes,
    None for the folder. `memory_bytes` is what training with batches of up to `batch_size` examples took on this
    engine beside program and engine, measured where the bundle was made; None where it was not.
    """

    backend: str
    files: Mapping[str, bytes]
    opened: str | None
    memory_bytes: int | None
    batch_size: int | None


@dataclass(frozen=True, slots=True)
class Bundle:
    """A model for devices of several engines. `exports` is by engine; `native` says whether the core is among them."""

    artifact: Artifact
    state: State
    native: bool
    exports: Mapping[str, EngineExport]

    @classmethod
    def load(cls, folder: Path, targets: Sequence[str] | None) -> "Bundle":
        """The bundle in a folder, with these targets or all.

        Raises ConfigurationError where a file is not the one of the manifest, or a target is not there.
        """
        manifest = _json(folder / MANIFEST_NAME)
        has_measured = (folder / MEASURED_NAME).exists()
        try:
            measured = _json(folder / MEASURED_NAME)["targets"] if has_measured else {}
            hashes = {name: str(record["sha256"]) for name, record in manifest["files"].items()}
            known = dict(manifest["targets"])
            chosen = {name: known[name] for name in targets or known if name in known}
            exports = [
                _export(folder, hashes, record, measured.get(name))
                for name, record in chosen.items()
                if name != NATIVE
            ]
        except ConfigurationError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ConfigurationError(
                f"{folder / MANIFEST_NAME} is no manifest of a bundle, or {MEASURED_NAME} is not its own: {error!r}"
            ) from error
        missing = sorted(set(targets or ()) - set(known))
        if missing:
            raise ConfigurationError(
                f"{folder}: got no target {missing[0]!r}, the bundle has {', '.join(sorted(known))}"
            )
        return cls(
            artifact=Artifact.decode(_read(folder, "model.sfd", hashes)),
            state=State.decode(_read(folder, "initial.sfs", hashes)),
            native=NATIVE in chosen,
            exports={export.backend: export for export in exports},
        )


def _export(
    folder: Path, hashes: Mapping[str, str], record: Mapping[str, Any], measured: Any
) -> EngineExport:
    """The export of a target. Raises FormatError for one that no offer can name."""
    paths = [Path(name) for name in record["device_files"]]
    files = [(path.name, _read(folder, path.as_posix(), hashes)) for path in paths]
    memory_bytes = None if measured is None else int(measured["growth_bytes"])
    references = (ExportFile(name, object_reference(data, MAX_BLOCK_BYTES)) for name, data in files)
    Export(record["backend"], tuple(references), record["opened"], memory_bytes or 0)
    return EngineExport(
        backend=record["backend"],
        files=dict(files),
        opened=record["opened"],
        memory_bytes=memory_bytes,
        batch_size=None if measured is None else int(measured["batch_size"]),
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigurationError(f"{path}: got no JSON: {error}") from error
    if not isinstance(content, dict):
        raise ConfigurationError(f"{path}: got {content!r:.80}, wanted an object")
    return content


def _read(folder: Path, name: str, hashes: Mapping[str, str]) -> bytes:
    """A file of the bundle, as the manifest names it by its hash."""
    try:
        data = (folder / name).read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{folder / name}: {error.strerror}") from error
    if hashlib.sha256(data).hexdigest() != hashes.get(name):
        raise ConfigurationError(
            f"{folder / name} is not the file of {MANIFEST_NAME}: export the bundle again"
        )
    return data
