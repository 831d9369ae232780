"""`sparsyfed demo`."""

# ruff: noqa: PLC0415 - what a command needs is imported when it runs

import argparse
import sys
from pathlib import Path

SUMMARY = "train a fleet of eight watches over MQTT on this machine and report"
EXAMPLE = "sparsyfed demo --out demo-report"
ENGINES_EXAMPLE = "sparsyfed demo --engines all"
QUICK_ROUNDS = 3


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.epilog = f"example:\n  {EXAMPLE}\n  {ENGINES_EXAMPLE}"
    parser.add_argument("--rounds", type=int, help="federated rounds (default: 30)")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (default: 0)")
    parser.add_argument(
        "--sparsity", type=float, help="share of the weights that is zero (default: 0.95)"
    )
    parser.add_argument(
        "--first-round",
        choices=("dense", "presparsified"),
        default="dense",
        help="start dense, as in the paper, or from the Top-K of the initial weights",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("demo-report"), help="folder (default: demo-report)"
    )
    parser.add_argument(
        "--quick", action="store_true", help=f"{QUICK_ROUNDS} rounds, to see that all parts work"
    )
    parser.add_argument(
        "--engines",
        default="native",
        help="what the devices train with, in turns: all that are here, or some of native, "
        "onnxruntime, onnxruntime-training, executorch, torchscript, with commas (default: native)",
    )
    parser.add_argument(
        "--boards",
        choices=("auto", "none"),
        default="auto",
        help="two emulated boards join for the last rounds of two or more, if QEMU and a compiler are "
        "there (default)",
    )
    parser.add_argument("--json", action="store_true", help="print report.json, nothing else")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Runs the demo and writes report.json and report.html."""
    from sparsyfed.tools import watch_job
    from sparsyfed.tools.demo import DemoSettings, all_engines, run_demo
    from sparsyfed.tools.demo_boards import BOARDS

    missing = BOARDS.missing_tools()
    if arguments.boards == "auto" and missing is not None:
        print(f"without boards: {missing}; `make boards` installs what is missing", file=sys.stderr)
    rounds = arguments.rounds
    if rounds is None:
        rounds = QUICK_ROUNDS if arguments.quick else watch_job.ROUNDS
    sparsity = watch_job.SPARSITY if arguments.sparsity is None else arguments.sparsity
    settings = DemoSettings(
        rounds=rounds,
        seed=arguments.seed,
        sparsity=sparsity,
        folder=arguments.out,
        first_round=arguments.first_round,
        engines=all_engines() if arguments.engines == "all" else arguments.engines.split(","),
        boards=arguments.boards == "auto" and missing is None,
    )
    run_demo(settings, quiet=arguments.json)
    if arguments.json:
        print((arguments.out / "report.json").read_text(encoding="utf-8"), end="")
    return 0
