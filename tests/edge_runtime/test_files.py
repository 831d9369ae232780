from pathlib import Path

import pytest

from sparsyfed.edge_runtime.files import write_atomic


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    path = tmp_path / "absent" / "page.html"
    with pytest.raises(FileNotFoundError) as caught:
        write_atomic(path, b"")
    assert caught.value.filename == str(path)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError) as refused:
        write_atomic(tmp_path / "file" / "page.html", b"")
    assert refused.value.filename == str(tmp_path / "file" / "page.html")
