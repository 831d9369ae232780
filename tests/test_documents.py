"""The code in the documents runs and does what the text says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sparsyfed import export
from sparsyfed.edge_runtime import Session, SparseUpdate

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix() for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"))
)


def code_blocks(document: str) -> list[str]:
    """Return the Python blocks of a document."""
    return re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)


def test_the_example_of_the_readme_runs(tmp_path: Path) -> None:
    training, engines, serving = code_blocks("README.md")
    export.initial_state(export.models.load_model("watch_cnn")).save(tmp_path / "trained.sfs")
    result = subprocess.run(
        [sys.executable, "-c", training + engines + serving],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert "arena" in result.stdout
    assert (tmp_path / "model.sfd").exists()
    assert "process_peak_bytes" in result.stdout


@pytest.mark.parametrize("document", DOCUMENTS)
def test_what_a_document_links_to_is_there(document: str) -> None:
    page = ROOT / document
    targets = re.findall(r"\]\(([^)\s#]*)(?:#[^)\s]*)?\)", page.read_text(encoding="utf-8"))
    local = [target for target in targets if target and "://" not in target]
    missing = [target for target in local if not (page.parent / target).exists()]
    assert not missing


@pytest.mark.parametrize("budget", ["global", "erk"])
def test_the_reader_of_the_format_page_gives_the_same_matrices(budget: str) -> None:
    (block,) = code_blocks("docs/format.md")
    names: dict[str, object] = {}
    exec(block, names)  # noqa: S102 - the block is ours, from the page under test
    read_csr = names["read_csr"]
    assert callable(read_csr)

    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3),
        torch.nn.BatchNorm2d(8),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(288, 5),
    )
    artifact = export.compile(
        model, torch.zeros(2, 3, 8, 8), beta=1.25, loss="cross_entropy"
    ).native
    state = export.initial_state(model, beta=1.25, sparsity=0.3, seed=1)
    generator = np.random.default_rng(0)
    with Session.open(artifact, state, batch_size=4) as session:
        x = generator.standard_normal((4, 3, 8, 8), dtype=np.float32)
        session.step(x, np.array([0, 1, 2, 3], np.int32), learning_rate=0.1)
        update = session.update(sparsity=0.9, budget=budget)
    data = update.encode(codec="csr", values="fp32")
    expected = list(SparseUpdate.decode(data, base=state).csr().values())
    for read, wanted in zip(read_csr(data), expected, strict=True):
        np.testing.assert_array_equal(read.toarray(), wanted.toarray())
