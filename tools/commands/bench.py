"""`sparsyfed bench`."""

# ruff: noqa: PLC0415 - what a command needs is imported when it runs

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sparsyfed.tools.commands.actions import add_action
from sparsyfed.tools.commands.export import shape_argument

SUMMARY = "measure time and memory of training steps against dense PyTorch on this machine"
EXAMPLE = "sparsyfed bench step --models watch_cnn resnet8 --sparsity 0.9 0.95"
LAYER_EXAMPLE = "sparsyfed bench layer --layers 64,64,3,1,32 1024,1024 --sparsity 0.95"
MEMORY_EXAMPLE = "sparsyfed bench memory --models resnet18 --sparsity 0.95"
THREADS_EXAMPLE = "sparsyfed bench threads --models resnet18 --batch-size 16 64 --sparsity 0.95"
ENGINES_EXAMPLE = "sparsyfed bench engines --models kws_dscnn --sparsity 0.95"

SMALL_MODELS = ["watch_cnn", "kws_dscnn", "resnet8", "mlp"]
DEFAULT_LAYERS = (
    *((64, 64, 3, 1, 32), (128, 128, 3, 1, 16), (256, 256, 3, 1, 8), (512, 512, 3, 1, 4)),
    *((64, 128, 3, 2, 32), (64, 128, 1, 2, 32), (64, 64, 3, 1, 32, 64), (1024, 1024)),
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    examples = (EXAMPLE, LAYER_EXAMPLE, MEMORY_EXAMPLE, THREADS_EXAMPLE, ENGINES_EXAMPLE)
    parser.epilog = "\n  ".join(["example:", *examples])
    kinds = parser.add_subparsers(dest="kind", metavar="WHAT", required=True)
    _configure_step(_kind(kinds, "step", "time whole training steps", EXAMPLE))
    _configure_layer(_kind(kinds, "layer", "time single layers", LAYER_EXAMPLE))
    _configure_memory(_kind(kinds, "memory", "measure the memory of a step", MEMORY_EXAMPLE))
    summary = "time steps of sessions with threads against one thread"
    description = "Wall time of a step: one thread, processes of one thread at once, threads."
    _configure_threads(_kind(kinds, "threads", summary, THREADS_EXAMPLE, description))
    summary = "time, memory and files of the pruned step on every engine"
    _configure_engines(_kind(kinds, "engines", summary, ENGINES_EXAMPLE))


def _kind(
    kinds: Any, name: str, summary: str, example: str, description: str | None = None
) -> argparse.ArgumentParser:
    usual = f"{summary[0].upper()}{summary[1:]}, ours and PyTorch's, one thread, in turns."
    parser = add_action(
        kinds,
        name,
        summary=summary,
        description=description or usual,
        example=example,
    )
    parser.add_argument("--batch-size", nargs="+", type=_positive, default=[16], metavar="N")
    parser.add_argument(
        "--sparsity", nargs="+", type=_sparsity, default=[0.9, 0.95, 0.99], metavar="S"
    )
    parser.add_argument("--json", action="store_true", help="print JSON with every figure")
    parser.set_defaults(run=run)
    return parser


def _configure_step(parser: argparse.ArgumentParser) -> None:
    _add_models(parser, SMALL_MODELS)
    parser.add_argument(
        "--masks",
        nargs="+",
        choices=("random", "initial"),
        default=["random"],
        help="which weights are left: any, or the largest initial ones (default: random)",
    )
    parser.add_argument(
        "--budget",
        nargs="+",
        choices=("global", "erk"),
        default=["global"],
        help="how many of each layer: one ranking (for random masks, the same share), or "
        "Erdős-Rényi shares (default: global)",
    )
    parser.add_argument("--state", type=Path, help="masks and values of this state (.sfs) instead")
    parser.add_argument(
        "--trained",
        type=_positive,
        default=0,
        metavar="STEPS",
        help="also the largest weights after so many steps of dense training",
    )
    parser.add_argument(
        "--data",
        type=Path,
        help="train on x.npy and y.npy of this folder, not on synthetic classes",
    )
    parser.add_argument(
        "--reference",
        action="store_true",
        help="also the step of the published simulation: dense operators, masks, thresholds",
    )
    parser.add_argument(
        "--memory", nargs="+", choices=("fast", "small"), help="plans of the runtime"
    )
    _add_kernels(parser)


def _configure_layer(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--layers",
        nargs="+",
        type=_layer,
        default=DEFAULT_LAYERS,
        metavar="SIZES",
        help="IN,OUT,KERNEL,STRIDE,IMAGE[,GROUPS] a convolution, IN,OUT a linear layer "
        "(default: those of ResNet-18 and some more)",
    )
    _add_kernels(parser)


def _configure_memory(parser: argparse.ArgumentParser) -> None:
    _add_models(parser, ["resnet18"])
    parser.add_argument(
        "--memory", nargs="+", choices=("fast", "small"), help="plans of the runtime"
    )


def _configure_threads(parser: argparse.ArgumentParser) -> None:
    _add_models(parser, ["resnet18"])
    parser.add_argument(
        "--threads",
        nargs="+",
        type=_positive,
        default=[2],
        metavar="N",
        help="of a session; leave so many cores free (default: 2)",
    )
    _add_turns(parser)


def _configure_engines(parser: argparse.ArgumentParser) -> None:
    _add_models(parser, SMALL_MODELS)
    parser.add_argument(
        "--targets",
        nargs="+",
        default=[],
        metavar="TARGET",
        help="of sparsyfed export, beside native and eager PyTorch (default: all that are here)",
    )
    _add_turns(parser)


def _add_models(parser: argparse.ArgumentParser, default: list[str]) -> None:
    parser.add_argument(
        "--models",
        nargs="+",
        default=default,
        metavar="MODEL",
        help="built-in models, or package.module:function, found from the working directory, too "
        f"(default: {' '.join(default)})",
    )
    parser.add_argument(
        "--input-shape", type=shape_argument, help="of one example for a model of your own: 3,32,32"
    )


def _add_kernels(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--kernels",
        nargs="+",
        metavar="NAME",
        help="kernel sets of the runtime (default: its best)",
    )
    parser.add_argument(
        "--isa",
        nargs="+",
        choices=("best", "avx2", "sse2"),
        default=["best"],
        help="limit both sides to these instructions (default: best, no limit)",
    )
    _add_turns(parser)


def _add_turns(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--turns", type=_positive, default=11, help="measurements (default: 11)")


def run(arguments: argparse.Namespace) -> int:
    """Measures and prints the table or the JSON."""
    from sparsyfed.tools import (
        bench_engines,
        bench_layer,
        bench_memory,
        bench_report,
        bench_step,
        bench_threads,
    )

    kinds: dict[str, tuple[Any, Callable[[argparse.Namespace], Any], str]] = {
        "step": (bench_step, _step_settings, "steps"),
        "layer": (bench_layer, _layer_settings, "layers"),
        "memory": (bench_memory, _memory_settings, "memory"),
        "threads": (bench_threads, _thread_settings, "threads"),
        "engines": (bench_engines, _engine_settings, "engines"),
    }
    module, settings, rows = kinds[arguments.kind]
    found = bench_report.describe(bench_report.given_command())
    found |= module.run(settings(arguments))
    if arguments.json:
        print(bench_report.result_json(found))
    else:
        measured = getattr(module, "MEASURED", bench_report.MEASURED)
        print(bench_report.result_text(found, rows, module.HEADING, module.cells, measured))
    return 0


def _step_settings(arguments: argparse.Namespace) -> Any:
    from sparsyfed.tools.bench_step import StepSettings

    return StepSettings(
        models=arguments.models,
        input_shape=arguments.input_shape,
        batch_sizes=arguments.batch_size,
        sparsities=arguments.sparsity,
        budgets=arguments.budget,
        masks=arguments.masks,
        state=_text(arguments.state),
        trained_steps=arguments.trained,
        data=_text(arguments.data),
        kernels=arguments.kernels or [None],
        memory=arguments.memory or [None],
        isa=arguments.isa,
        reference=arguments.reference,
        turns=arguments.turns,
    )


def _layer_settings(arguments: argparse.Namespace) -> Any:
    from sparsyfed.tools.bench_layer import LayerSettings

    return LayerSettings(
        layers=arguments.layers,
        batch_sizes=arguments.batch_size,
        sparsities=arguments.sparsity,
        kernels=arguments.kernels or [None],
        isa=arguments.isa,
        turns=arguments.turns,
    )


def _memory_settings(arguments: argparse.Namespace) -> Any:
    from sparsyfed.tools.bench_memory import MemorySettings

    return MemorySettings(
        models=arguments.models,
        input_shape=arguments.input_shape,
        batch_sizes=arguments.batch_size,
        sparsities=arguments.sparsity,
        memory=arguments.memory or [None],
    )


def _thread_settings(arguments: argparse.Namespace) -> Any:
    from sparsyfed.tools.bench_threads import ThreadSettings

    return ThreadSettings(
        models=arguments.models,
        input_shape=arguments.input_shape,
        batch_sizes=arguments.batch_size,
        sparsities=arguments.sparsity,
        threads=arguments.threads,
        turns=arguments.turns,
    )


def _engine_settings(arguments: argparse.Namespace) -> Any:
    from sparsyfed.tools.bench_engines import EngineSettings

    return EngineSettings(
        models=arguments.models,
        input_shape=arguments.input_shape,
        batch_sizes=arguments.batch_size,
        sparsities=arguments.sparsity,
        targets=arguments.targets,
        turns=arguments.turns,
    )


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path.absolute())


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted a whole number above 0")
    return int(text)


def _sparsity(text: str) -> float:
    try:
        sparsity = float(text)
    except ValueError:
        sparsity = -1.0
    if not 0 <= sparsity < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted at least 0 and less than 1")
    return sparsity


def _layer(text: str) -> tuple[int, ...]:
    sizes = tuple(int(part) if part.isdecimal() else 0 for part in text.split(","))
    if len(sizes) not in (2, 5, 6) or min(sizes) < 1:
        raise argparse.ArgumentTypeError(
            f"got {text!r}, wanted IN,OUT,KERNEL,STRIDE,IMAGE[,GROUPS] or IN,OUT"
        )
    return sizes
