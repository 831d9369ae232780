"""Which operations a firmware has, and which a model wants."""

import pytest

from sparsyfed.devices.board_operations import EVERYTHING, NAMES, operations_of, require_operations
from sparsyfed.edge_runtime.artifact import Artifact
from sparsyfed.edge_runtime.errors import UnsupportedOperationError


def test_a_model_trains_on_a_firmware_with_its_operations(artifact: Artifact) -> None:
    wanted = operations_of(artifact)
    assert "linear" in wanted
    assert "cross_entropy" in wanted
    require_operations(artifact, EVERYTHING)
    require_operations(artifact, sum(NAMES[name] for name in wanted))


def test_each_operation_that_is_missing_is_named(artifact: Artifact) -> None:
    for name in operations_of(artifact):
        with pytest.raises(
            UnsupportedOperationError, match=f"built without {name}: .* OPERATIONS="
        ):
            require_operations(artifact, EVERYTHING & ~NAMES[name])
    with pytest.raises(UnsupportedOperationError, match=", ".join(operations_of(artifact))):
        require_operations(artifact, 0)
