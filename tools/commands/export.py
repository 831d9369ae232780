"""`sparsyfed export`."""

# ruff: noqa: PLC0415 - what a command needs is imported when it runs

import argparse
import json
import math
from pathlib import Path

SUMMARY = "compile a PyTorch model into an artifact and an initial state for devices"
EXAMPLE = "sparsyfed export --model watch_cnn --out out"
BUNDLE_EXAMPLE = (
    "sparsyfed export --model watch_cnn --target native,onnx,executorch,torchscript "
    "--device phone_midrange --out out"
)
MAX_EXAMPLE_ELEMENTS = 2**26  # docs/format.md, limits


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.epilog = (
        f"example:\n  {EXAMPLE}\n  {BUNDLE_EXAMPLE}\n"
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
        help="what for: native, onnx, onnx-training, executorch, torchscript, with commas (default: native)",
    )
    parser.add_argument(
        "--kernels",
        metavar="NAME",
        help="of onnx and executorch: sparsyfed, several times faster on sparse models, whose operators an app "
        "has to add to the engine, or stock, the engine's own (default: stock for onnx, sparsyfed for executorch)",
    )
    parser.add_argument("--device", help="name of a profile that the training has to fit")
    parser.add_argument("--profiles", type=Path, help="TOML file with profiles of your own")
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
    """Writes the bundle: model.sfd, initial.sfs, the targets, manifest.json."""
    from sparsyfed.devices.profiles import find_profile
    from sparsyfed.tools.bench_process import say
    from sparsyfed.tools.bundle import BundleSettings, write_bundle
    from sparsyfed.tools.bundle_report import bundle_text

    device = arguments.device
    settings = BundleSettings(
        model=arguments.model,
        folder=arguments.out,
        targets=arguments.target,
        device=None if device is None else find_profile(device, arguments.profiles),
        batch_size=arguments.batch_size,
        kernels=arguments.kernels,
        verify=not arguments.no_verify,
        input_shape=arguments.input_shape,
        beta=arguments.beta,
        loss=arguments.loss,
        sparsity=arguments.sparsity,
        budget=arguments.budget,
        seed=arguments.seed,
    )
    bundle = write_bundle(settings, say)
    print(json.dumps(bundle.manifest, indent=2) if arguments.json else bundle_text(bundle))
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
