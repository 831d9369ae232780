"""The part of an export that is for one kind of microboard: does it fit, C source, a firmware image."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsyfed.devices.board_fit import BoardFit, examples_bytes, fit_on_board
from sparsyfed.devices.board_operations import operations_of
from sparsyfed.devices.profiles import DeviceProfile
from sparsyfed.edge_runtime import Artifact, State
from sparsyfed.edge_runtime.errors import ArenaError, ConfigurationError
from sparsyfed.edge_runtime.files import write_atomic
from sparsyfed.tools.firmware import build_image, require_tools, size_of
from sparsyfed.tools.model_source import HEADER, model_source

SOURCE_NAME = "model.c"
HEADER_NAME = "model.h"
IMAGE_NAME = "firmware.elf"


@dataclass(frozen=True, slots=True)
class BoardExport:
    """A board to export for, by its profile, and what is to be written: C arrays, a firmware image.

    `ram_bytes` is the RAM of a board that has other than its profile says.
    """

    profile: DeviceProfile
    ram_bytes: int | None = None
    c_array: bool = False
    image: bool = False

    @property
    def name(self) -> str:
        """The board's, which is also that of the folder of its files."""
        return self.profile.name

    @property
    def memory_bytes(self) -> int:
        """What the firmware leaves to models and data. Raises ConfigurationError where it leaves nothing."""
        profile = self.profile
        if self.ram_bytes is None:
            return profile.memory_bytes
        taken = (profile.ram_bytes or profile.memory_bytes) - profile.memory_bytes
        if self.ram_bytes <= taken:
            raise ConfigurationError(
                f"got {self.ram_bytes:,} bytes of RAM, the firmware of {self.name} takes {taken:,} itself"
            )
        return self.ram_bytes - taken

    @property
    def in_flash(self) -> bool:
        """Whether the model is in flash, where it takes no RAM."""
        return self.c_array or self.image

    def require(self) -> None:
        """Raise BackendError where a tool for the image is missing."""
        if self.image:
            require_tools(self.name)

    def fit(
        self,
        artifact: Artifact,
        state: State,
        batch_size: int,
        state_at: Callable[[float], bytes] | None = None,
        memory_bytes: int | None = None,
    ) -> BoardFit:
        """How the board trains this, a batch at a time at least.

        Raises ArenaError that says what is missing, to the byte, and what would fit.
        """
        try:
            return fit_on_board(
                artifact,
                state.encode(),
                batch_size,
                self.memory_bytes if memory_bytes is None else memory_bytes,
                batch_size,
                in_flash=self.in_flash,
                state_at=state_at,
            )
        except ArenaError as error:
            raise ArenaError(f"{self.name}: {error}", got=error.got, wanted=error.wanted) from error

    def write(
        self, folder: Path, artifact: Artifact, state: State, fit: BoardFit
    ) -> dict[str, Any]:
        """Write what is wanted to `folder`, named after the board; return the record of the manifest."""
        files: list[Path] = []
        if self.in_flash:
            folder.mkdir(exist_ok=True)
            files = [folder / HEADER_NAME, folder / SOURCE_NAME]
            write_atomic(files[0], HEADER.encode())
            write_atomic(files[1], model_source(artifact, state).encode())
        memory_bytes = fit.memory_bytes
        if self.image:
            files += build_image(
                *(self.name, files[1], folder / IMAGE_NAME, self.ram_bytes), operations_of(artifact)
            )
            memory_bytes = size_of(self.name, folder / IMAGE_NAME, "memory")
            fit = self.fit(artifact, state, fit.plan.batch_size, memory_bytes=memory_bytes)
        return {
            "name": self.name,
            "ram_bytes": self.ram_bytes or self.profile.ram_bytes,
            "memory_bytes": memory_bytes,
            "model_in": "flash" if self.in_flash else "RAM",
            "artifact_bytes": len(artifact.encode()),
            "state_bytes": len(state.encode()),
            "batch_size": fit.plan.batch_size,
            "memory": fit.memory,
            "arena_bytes": fit.plan.arena_bytes,
            "examples_bytes": examples_bytes(artifact, fit.plan.batch_size),
            "files": [file.relative_to(folder.parent).as_posix() for file in files],
        }
