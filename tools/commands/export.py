"""`sparsyfed export`."""

# ruff: noqa: PLC0415 - what a command needs is imported when it runs

import argparse
import json
import math
from pathlib import Path

SUMMARY = "compile a PyTorch model into an artifact and an initial state for devices"
EXAMPLE = "sparsyfed export --model watch_cnn --out out"
MAX_EXAMPLE_ELEMENTS = 2**26  # docs/format.md, limits


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.epilog = (
        f"example:\n  {EXAMPLE}\n"
        "  sparsyfed export --model my_package.models:net --input-shape 3,32,32 --out out"
    )
    parser.add_argument(
        "--model",
        required=True,
        help="built-in model, or package.module:function; found from the working directory, too",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the files")
    parser.add_argument(
        "--input-shape",
        type=shape_argument,
        help="of one example, such as 3,32,32; built-ins know theirs",
    )
    parser.add_argument("--beta", type=float, default=1.25, help="exponent (default: 1.25)")
    parser.add_argument("--loss", choices=("cross_entropy", "mse"), default="cross_entropy")
    parser.add_argument(
        "--sparsity", type=float, default=0.0, help="of the initial state (default: 0, dense)"
    )
    parser.add_argument(
        "--budget",
        type=_budget,
        default="global",
        help="global (one ranking), erk (shares of layers), or LAYER=COUNT,... (default: global)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the initial state (default: 0)")
    parser.add_argument("--json", action="store_true", help="print the manifest")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Writes model.sfd, initial.sfs and manifest.json."""
    from sparsyfed.tools.export_files import export_files, manifest_text

    manifest = export_files(
        arguments.model,
        arguments.out,
        input_shape=arguments.input_shape,
        beta=arguments.beta,
        loss=arguments.loss,
        sparsity=arguments.sparsity,
        budget=arguments.budget,
        seed=arguments.seed,
    )
    print(json.dumps(manifest, indent=2) if arguments.json else manifest_text(manifest))
    return 0


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
