"""`sparsyfed export`."""

# ruff: noqa: PLC0415 - what a command needs is imported when it runs

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sparsyfed.edge_runtime.errors import ConfigurationError

if TYPE_CHECKING:
    from sparsyfed.edge_runtime import Quantization
    from sparsyfed.tools.board_export import BoardExport

SUMMARY = "compile a PyTorch model into an artifact and an initial state for devices"
EXAMPLE = "sparsyfed export --model watch_cnn --out out"
BUNDLE_EXAMPLE = (
    "sparsyfed export --model watch_cnn --target native,onnx,executorch,torchscript "
    "--device phone_midrange --out out"
)
BOARD_EXAMPLE = (
    "sparsyfed export --model resnet8 --target board --board mps2-an386 --density 0.02 --batch-size 1 "
    "--image --out out"
)
BOARD = "board"
MAX_EXAMPLE_ELEMENTS = 2**26  # docs/format.md, limits


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.epilog = (
        f"example:\n  {EXAMPLE}\n  {BUNDLE_EXAMPLE}\n  {BOARD_EXAMPLE}\n"
        "  sparsyfed export --model my_package.models:net --input-shape 3,32,32 --out out"
    )
    parser.add_argument(
        "--model",
        required=True,
        help="built-in model, or package.module:function; found from the working directory, too",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the files")
    parser.add_argument(
        "--target",
        type=_names,
        default=["native"],
        help="what for: native, board, onnx, onnx-training, executorch, torchscript, with commas "
        "(default: native)",
    )
    parser.add_argument(
        "--kernels",
        metavar="NAME",
        help="of onnx and executorch: sparsyfed, several times faster on sparse models, whose operators an app "
        "has to add to the engine, or stock, the engine's own (default: stock for onnx, sparsyfed for executorch)",
    )
    parser.add_argument("--device", help="name of a profile that the training has to fit")
    parser.add_argument("--profiles", type=Path, help="TOML file with profiles of your own")
    _add_board_arguments(parser)
    parser.add_argument(
        "--batch-size", type=int, default=16, help="that memory is planned for (default: 16)"
    )
    parser.add_argument(
        "--no-verify",
        action="store_true",
        help="do not compare the exports with PyTorch, which takes most of the time; the risk: a "
        "fault of an exporter or engine then trains wrong models on devices, and nothing says so",
    )
    parser.add_argument(
        "--input-shape",
        type=shape_argument,
        help="of one example, such as 3,32,32; built-ins know theirs",
    )
    parser.add_argument(
        "--int8-inputs",
        type=Path,
        metavar="X.npy",
        help="take inputs as int8, a quarter of the memory, in steps that cover the range of these examples "
        "(float32, examples first); for native devices and boards alone",
    )
    parser.add_argument("--beta", type=float, default=1.25, help="exponent (default: 1.25)")
    parser.add_argument("--loss", choices=("cross_entropy", "mse"), default="cross_entropy")
    start = parser.add_mutually_exclusive_group()
    start.add_argument(
        "--sparsity", type=float, default=0.0, help="of the initial state (default: 0, dense)"
    )
    start.add_argument("--density", type=float, help="1 - sparsity, the share that is stored")
    start.add_argument(
        "--state", type=Path, help="this state (.sfs) in the place of an initial one"
    )
    parser.add_argument(
        "--budget",
        type=_budget,
        help="global (one ranking), erk (shares of layers), or LAYER=COUNT,... (default: global)",
    )
    parser.add_argument("--seed", type=int, help="of the initial state (default: 0)")
    parser.add_argument("--json", action="store_true", help="print the manifest")
    parser.set_defaults(run=run)


def _add_board_arguments(parser: argparse.ArgumentParser) -> None:
    board = parser.add_argument_group("a microboard, with --target board")
    board.add_argument(
        "--board", help="such as mps2-an386: a folder of devices/boards, and a profile"
    )
    board.add_argument(
        "--memory", help="all RAM of the board, such as 128KiB (default: its profile's)"
    )
    board.add_argument(
        "--c-array",
        action="store_true",
        help="write model.c and model.h: artifact and state as constant arrays, for flash",
    )
    board.add_argument(
        "--image",
        action="store_true",
        help="write firmware with the model inside, ready to be flashed; needs the board's compiler",
    )


def run(arguments: argparse.Namespace) -> int:
    """Writes the bundle: model.sfd, initial.sfs, the targets, manifest.json."""
    from sparsyfed.devices.profiles import find_profile
    from sparsyfed.edge_runtime import State
    from sparsyfed.tools.bench_process import say
    from sparsyfed.tools.bundle import BundleSettings, write_bundle
    from sparsyfed.tools.bundle_report import bundle_text

    for option in ("seed", "budget"):
        if arguments.state is not None and getattr(arguments, option) is not None:
            raise ConfigurationError(f"--{option} is of the initial state, --state takes its place")
    device = arguments.device
    settings = BundleSettings(
        model=arguments.model,
        folder=arguments.out,
        targets=_targets(arguments.target),
        device=None if device is None else find_profile(device, arguments.profiles),
        board=_board_export(arguments),
        state=None if arguments.state is None else State.load(arguments.state),
        batch_size=arguments.batch_size,
        kernels=arguments.kernels,
        verify=not arguments.no_verify,
        input_shape=arguments.input_shape,
        beta=arguments.beta,
        loss=arguments.loss,
        quantization=_quantization(arguments.int8_inputs),
        sparsity=_sparsity(arguments),
        budget=arguments.budget or "global",
        seed=arguments.seed or 0,
    )
    bundle = write_bundle(settings, say)
    print(json.dumps(bundle.manifest, indent=2) if arguments.json else bundle_text(bundle))
    return 0


def _targets(names: Sequence[str]) -> list[str]:
    """Targets as bundles have them: a board takes the native one. Raises ConfigurationError for an unknown one."""
    from sparsyfed.coordinator.bundle import NATIVE
    from sparsyfed.export.targets import TARGETS

    for name in names:
        if name not in TARGETS and name != BOARD:
            known = ", ".join((*TARGETS, BOARD))
            raise ConfigurationError(f"got target {name!r}, wanted some of {known}")
    return [NATIVE if name == BOARD else name for name in names]


def _sparsity(arguments: argparse.Namespace) -> float:
    """The sparsity that is asked for, or 1 - density. Raises ConfigurationError for a density that is none."""
    density: float | None = arguments.density
    if density is None:
        return float(arguments.sparsity)
    if not 0 < density <= 1:
        raise ConfigurationError(f"got density {density}, wanted above 0 and at most 1")
    return 1 - density


def _quantization(examples: Path | None) -> "Quantization | None":
    """That of the range of examples in a `.npy` file. Raises ConfigurationError for another file."""
    from sparsyfed.devices.dataset import ArrayFile
    from sparsyfed.edge_runtime import Quantization
    from sparsyfed.edge_runtime.errors import InputError

    if examples is None:
        return None
    try:
        return Quantization.of(ArrayFile(examples).values)
    except InputError as error:
        raise ConfigurationError(f"--int8-inputs {examples}: {error}") from error


def _board_export(arguments: argparse.Namespace) -> "BoardExport | None":
    """What is wanted for a board. Raises ConfigurationError for options that do not go together."""
    from sparsyfed.devices.profiles import list_profiles, parse_bytes
    from sparsyfed.tools.board_export import BoardExport

    if (BOARD in arguments.target) != (arguments.board is not None):
        raise ConfigurationError("--target board and --board NAME go together")
    for option in ("memory", "c_array", "image"):
        if arguments.board is None and getattr(arguments, option):
            raise ConfigurationError(f"--{option.replace('_', '-')} goes with --target board")
    if arguments.board is None:
        return None
    profiles = {profile.name: profile for profile in list_profiles(arguments.profiles)}
    if arguments.board not in profiles:
        boards = sorted(name for name, each in profiles.items() if each.kernels == "portable")
        raise ConfigurationError(
            f"got board {arguments.board!r}, wanted one of {', '.join(boards)}"
        )
    return BoardExport(
        profile=profiles[arguments.board],
        ram_bytes=None if arguments.memory is None else parse_bytes(arguments.memory),
        c_array=arguments.c_array,
        image=arguments.image,
    )


def shape_argument(text: str) -> tuple[int, ...]:
    """The shape that an argument gives, such as 3,32,32."""
    try:
        shape = tuple(int(part) for part in text.split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted sizes above 0 such as 3,32,32")
    if math.prod(shape) > MAX_EXAMPLE_ELEMENTS:
        raise argparse.ArgumentTypeError(
            f"got {text!r}, wanted at most {MAX_EXAMPLE_ELEMENTS:,} elements of one example"
        )
    return shape


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def _budget(text: str) -> str | dict[str, int]:
    if text in ("global", "erk"):
        return text
    counts = {}
    for part in text.split(","):
        layer, equals, count = part.rpartition("=")
        if not equals or not layer or not count.isdecimal():
            raise argparse.ArgumentTypeError(
                f"got {text!r}, wanted global, erk or LAYER=COUNT,LAYER=COUNT"
            )
        counts[layer] = int(count)
    return counts
