"""The firmware of boards, built from the sources in `devices/boards` of a checkout."""

import fcntl
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

from sparsyfed.devices.board_operations import NAMES
from sparsyfed.edge_runtime.errors import BackendError, ConfigurationError

TOOLS = re.compile(r"^TOOLS\s*:=\s*(\S+)\s*$", re.MULTILINE)
"""In `board.mk`: how the names of a board's compiler and its tools begin."""
SYMBOL = re.compile(r"^([0-9a-f]+) \S (board_\w+)$", re.MULTILINE)
OVERFLOW = re.compile(r"region [`']?(CODE|RAM)[`']? overflowed by (\d+) bytes")
"""What GNU ld says of a memory that is too small."""
MEMORIES = {"CODE": "flash", "RAM": "RAM"}
BUILD_SECONDS = 600


def sources() -> Path:
    """The folder of the firmware. Raises BackendError outside a checkout."""
    folder = Path(str(resources.files("sparsyfed.devices"))) / "boards"
    if not (folder / "Makefile").is_file():
        raise BackendError("the firmware's sources are not installed: run this from a checkout")
    return folder.resolve()


def list_boards() -> tuple[str, ...]:
    """Names of the boards that the firmware is written for."""
    return tuple(sorted(path.parent.name for path in sources().glob("*/board.mk")))


def compiler_of(board: str) -> str:
    """The compiler that `board.mk` names. Raises ConfigurationError for an unknown board, or one that names none."""
    if board not in list_boards():
        raise ConfigurationError(f"got board {board!r}, wanted one of {', '.join(list_boards())}")
    makefile = sources() / board / "board.mk"
    tools = TOOLS.search(makefile.read_text(encoding="utf-8"))
    if tools is None:
        raise ConfigurationError(f"{makefile}: wanted a line such as TOOLS := arm-none-eabi-")
    return f"{tools[1]}gcc"


def require_tools(board: str, *more: str) -> None:
    """Raise BackendError unless make and the compiler of a board are there, and these programs besides."""
    tools = ("make", compiler_of(board), *more)
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        raise BackendError(
            f"{' and '.join(missing)} not installed: {board} needs it (make boards installs what Debian has)"
        )


def build_firmware(
    board: str,
    ram_bytes: int | None = None,
    operations: Sequence[str] = (),
    sensors: str | None = None,
    vectors: bool = False,
) -> Path:
    """Build the firmware of a board, unless it is up to date, and return the ELF file.

    With `ram_bytes` it is that of a board that has so much RAM, with `operations` one that has only these
    (`board_operations.operations_of` names those of a model). Raises BackendError without compiler and make, or when
    they fail, ConfigurationError for an operation that there is not. `sensors` is the C file in `devices/boards` with a
    `board_sense`; without one it is that of the board, if it has any. `vectors`: with the board's vector instructions,
    BackendError where it has none.
    """
    unknown = sorted(set(operations) - set(NAMES))
    if unknown:
        raise ConfigurationError(
            f"got operations {', '.join(unknown)}, wanted of {', '.join(NAMES)}"
        )
    chosen = {} if sensors is None else {"SENSORS": sensors}
    chosen |= {"VECTORS": "1"} if vectors else {}
    require_tools(board)
    with _build_folder(board, operations, sensors, vectors=vectors) as folder:
        _make(board, "firmware", _variables(ram_bytes, operations) | chosen)
    return folder / f"{_stem(ram_bytes)}.elf"


def build_image(
    board: str,
    model: Path,
    image: Path,
    ram_bytes: int | None = None,
    operations: Sequence[str] = (),
) -> list[Path]:
    """Build `image`, the ELF file of firmware with a model in flash, and return it with its .hex and .bin.

    `model` is a C file of `model_source`. Raises ConfigurationError for a model that the flash does not hold, else what
    `build_firmware` raises.
    """
    images = {".elf": image, **{each: image.with_suffix(each) for each in (".hex", ".bin")}}
    require_tools(board)
    with _build_folder(board, operations) as folder:
        # Make takes no path with a space: it sees one from its own folder.
        shutil.copyfile(model, folder / "model.c")
        variables = {"MODEL": os.path.relpath(folder / "model.c", sources())}
        _make(board, "image", _variables(ram_bytes, operations) | variables)
        for suffix, path in images.items():
            shutil.move(folder / f"{_stem(ram_bytes)}-model{suffix}", path)
    return list(images.values())


def size_of(board: str, image: Path, section: str) -> int:
    """Bytes of a section of a firmware, by its ends in the ELF file: text, data, bss, or memory for models and data."""
    listing = subprocess.run(
        [compiler_of(board).removesuffix("gcc") + "nm", str(image)],
        capture_output=True,
        text=True,
        timeout=BUILD_SECONDS,
        check=True,
    ).stdout
    places = {name: int(place, 16) for place, name in SYMBOL.findall(listing)}
    return places[f"board_{section}_end"] - places[f"board_{section}_start"]


@contextmanager
def _build_folder(
    board: str,
    operations: Sequence[str],
    sensors: str | None = None,
    *,
    vectors: bool = False,
) -> Iterator[Path]:
    """The folder that the Makefile builds such firmware in, for one process at a time."""
    sensor = [] if sensors is None else [Path(sensors).stem]
    place = "-".join((board, *sorted(set(operations)), *sensor, *["vectors"] * vectors))
    folder = sources().parents[1] / "build" / "boards" / place
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


def _stem(ram_bytes: int | None) -> str:
    return "firmware" if ram_bytes is None else f"firmware-{ram_bytes}"


def _variables(ram_bytes: int | None, operations: Sequence[str]) -> dict[str, str]:
    variables = {} if ram_bytes is None else {"RAM_BYTES": str(ram_bytes)}
    return variables | ({"OPERATIONS": " ".join(operations)} if operations else {})


def _make(board: str, goal: str, variables: Mapping[str, str]) -> None:
    """Run the Makefile of the firmware."""
    command = ["make", "--no-print-directory", "-C", str(sources()), goal, f"BOARD={board}"]
    command += [f"{name}={value}" for name, value in variables.items()]
    # What make hands down, when make started us, is not for this one.
    environment = {name: value for name, value in os.environ.items() if "MAKE" not in name}
    done = subprocess.run(
        command,
        env=environment,
        capture_output=True,
        text=True,
        timeout=BUILD_SECONDS,
        check=False,
    )
    missing = OVERFLOW.search(done.stderr)
    if missing:
        raise ConfigurationError(
            f"{board}: firmware and model do not fit: {int(missing[2]):,} bytes of {MEMORIES[missing[1]]} are missing"
        )
    if done.returncode:
        raise BackendError(f"the firmware of {board} was not built: {done.stderr.strip()[-2000:]}")
