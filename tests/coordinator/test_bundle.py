"""What a bundle must hold before a job begins with it."""

import json
from pathlib import Path
from typing import Any

import pytest

from sparsyfed.coordinator.bundle import Bundle
from sparsyfed.edge_runtime import Artifact, ConfigurationError, State
from sparsyfed.edge_runtime.transfer import sha256_hex

MEASURED = {"growth_bytes": 5000, "batch_size": 16}


def write(
    folder: Path,
    artifact: Artifact,
    state: State,
    files: dict[str, bytes],
    *,
    opened: str | None = None,
    measured: dict[str, Any] = MEASURED,
) -> Path:
    """A bundle with one export, true to its manifest."""
    content = {"model.sfd": artifact.encode(), "initial.sfs": state.encode(), **files}
    for name, data in content.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    record = {"backend": "onnxruntime", "opened": opened, "device_files": list(files)}
    manifest = {
        "files": {name: {"sha256": sha256_hex(data)} for name, data in content.items()},
        "targets": {"onnx": record},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "measured.json").write_text(json.dumps({"targets": {"onnx": measured}}))
    return folder


def test_an_export_is_loaded_with_what_it_takes(
    tmp_path: Path, artifact: Artifact, dense_state: State
) -> None:
    files = {"onnx/a": b"1", "onnx/b": b"2"}
    bundle = Bundle.load(write(tmp_path, artifact, dense_state, files, opened="b"), None)
    export = bundle.exports["onnxruntime"]
    assert not bundle.native
    assert bundle.state == dense_state
    assert export.files == {"a": b"1", "b": b"2"}
    assert (export.opened, export.memory_bytes, export.batch_size) == ("b", 5000, 16)


ONE = {"onnx/a": b"1"}


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"files": {f"onnx/{n}": b"1" for n in range(65)}}, "files: got .* wanted .*64"),
        ({"files": {"onnx/a b": b"1"}}, "got 'a b'"),
        ({"files": {"onnx/a": b"1", "other/a": b"2"}}, "each once"),
        ({"files": {"onnx/a": b""}}, "size: got 0"),
        ({"files": ONE, "opened": "absent"}, "got 'absent'"),
        ({"files": ONE, "measured": MEASURED | {"growth_bytes": "x"}}, "invalid literal"),
        ({"files": ONE, "measured": MEASURED | {"growth_bytes": -5}}, "memory_bytes: got -5"),
    ],
    ids=["many", "name", "twice", "empty", "opened", "text", "negative"],
)
def test_an_export_that_no_offer_can_hold_is_refused_at_the_start(
    tmp_path: Path, artifact: Artifact, dense_state: State, wrong: dict[str, Any], reason: str
) -> None:
    write(tmp_path, artifact, dense_state, **wrong)
    with pytest.raises(ConfigurationError, match=reason):
        Bundle.load(tmp_path, None)
