"""The page on training steps, from the figures of the study alone."""

from collections.abc import Mapping, Sequence
from typing import Any

from sparsyfed.tools.bench_step import COUNTED, PASSES
from sparsyfed.tools.plot_files import PlotFile
from sparsyfed.tools.roofline import levels
from sparsyfed.tools.step_goals import by_sparsity, judge, resnet18
from sparsyfed.tools.step_plots import step_floors

Row = Mapping[str, Any]
Result = Mapping[str, Any]

MEGA = 1e6
MEBI = 2**20


def markdown(result: Result, plots: Sequence[PlotFile], notes: str | None) -> str:
    """The page. `notes`, Markdown of people, is its last section where given."""
    sections = [
        "# A training step against dense PyTorch",
        _what(result),
        "## Bounds and goals",
        _verdicts(result),
        "\n\n".join(f"![{plot.caption}]({plot.file_name})\n\n{plot.caption}" for plot in plots),
        "## Steps",
        _trainings(result),
        _steps(result["steps"]),
        "## Layers",
        _layers(result["layers"]),
        "## Memory",
        _memory(result["memory"]),
        "## What bounds a step",
        _roofline(result),
    ]
    if notes is not None:
        sections += ["## Notes", notes.strip()]
    return "\n\n".join(section for section in sections if section) + "\n"


def _what(result: Result) -> str:
    machine, versions = result["machine"], result["versions"]
    return (
        "One whole training step: power-propagation, forward, loss, backward, Top-K of the saved "
        "inputs, SGD with weight decay. Dense is PyTorch eager, the better of contiguous and "
        "channels_last. All sides of a row run in turns in one process on one thread; times are "
        "CPU time, medians over the turns, in milliseconds. A speed-up is the median of the ratios "
        "of the turns. Where the ISA is limited, oneDNN, ATen and MKL are limited as well as the "
        "runtime.\n\n"
        f"Date {result['date']}, sparsyfed {versions['sparsyfed']}, PyTorch {versions['torch']}, "
        f"{machine['platform']}, {machine['processor']}, {machine['cpu_count']} cores "
        f"({', '.join(machine['vector_instructions'])}). Command:\n\n    {result['command']}"
    )


def _verdicts(result: Result) -> str:
    rows = [
        [
            verdict.title,
            verdict.text(verdict.measured),
            ("≤ " if verdict.at_most else "≥ ") + verdict.text(verdict.bound),
            verdict.met(verdict.bound),
            verdict.text(verdict.goal),
            verdict.met(verdict.goal),
        ]
        for verdict in judge(result)
    ]
    text = (
        "ResNet-18 for 32x32 images with BatchNorm where no model is named. With the budget erk a "
        "bound or goal is 15 % lower. A dash: not measured, or no goal."
    )
    return f"{text}\n\n{_table(['', 'measured', 'bound', '', 'goal', ''], rows)}"


def _trainings(result: Result) -> str:
    lines = [
        f"The trained masks of {each['model']} are the largest weights after {each['steps']} dense "
        f"steps of batch {each['batch_size']} at learning rate {each['learning_rate']} on "
        f"{each['data']}: mean loss {each['loss_of_first_tenth']:.3f} in the first tenth of them, "
        f"{each['loss_of_last_tenth']:.3f} in the last."
        for each in result["trainings"]
    ]
    return "\n\n".join(lines)


def _steps(rows: Sequence[Row]) -> str:
    heading = ["model", "batch", "ISA", "kernels", "masks", "budget", "density", "dense", "ours"]
    heading += ["speed-up", "quartiles", "over reference", "forward", "dX", "dW", "again"]
    heading += ["arena MiB"]
    text = (
        "Forward, dX and dW are multiply-adds really done, as a share of the dense model's; what the "
        "backward computed again is a share of the dense forward. The "
        "reference is the step of the published simulation: power-propagation and Top-K search at "
        "each forward, threshold mask, dense convolutions, contiguous."
    )
    return f"{text}\n\n{_table(heading, [_step(row) for row in rows])}"


def _step(row: Row) -> list[str]:
    spread, over = row["speedup"], row["speedup_over_reference"]
    kernels = row["kernels"] if row["memory"] is None else f"{row['kernels']}, {row['memory']}"
    shares = [row["multiply_adds"][name]["share"] for name in COUNTED]
    dense = row["dense_seconds"][row["dense_format"]]["median"]
    return [
        *(row["model"], str(row["batch_size"]), row["isa"], kernels, row["masks"], row["budget"]),
        *(f"{row['density']:.2%}", f"{1e3 * dense:.3g}", f"{1e3 * row['seconds']['median']:.3g}"),
        *(f"{spread['median']:.2f}", f"{spread['low']:.2f} to {spread['high']:.2f}"),
        "-" if over is None else f"{over['median']:.1f}",
        *("-" if share is None else f"{share:.2%}" for share in shares),
        f"{row['arena_bytes'] / MEBI:.1f}",
    ]


def _layers(rows: Sequence[Row]) -> str:
    heading = ["layer", "sparsity", "dense forward", "ours", "speed-up", "dense step", "ours"]
    heading += ["speed-up", "PyTorch's forward, dX, dW alone"]
    body = []
    for row in rows:
        texts = [row["layer"] + (" \\*" if row["of_net"] else ""), f"{row['sparsity']:.0%}"]
        for kind in ("forward", "step"):
            sides = [row[side][kind]["median"] for side in ("dense_seconds", "seconds")]
            texts += [f"{1e3 * seconds:.3g}" for seconds in sides]
            texts.append(f"{row['speedup'][kind]['median']:.1f}")
        alone = [row["operator_seconds"][name]["median"] for name in PASSES]
        body.append([*texts, ", ".join(f"{1e3 * seconds:.3g}" for seconds in alone)])
    text = (
        "What a small net takes more with the layer than without it: a stem, the layer, pooling, "
        "loss. Forward is an evaluation, step a training step with both gradients. \\* the whole "
        "small net: the layer changes the shape, so that pooling is not the same without it. "
        "Random masks, batch 16."
    )
    return f"{text}\n\n{_table(heading, body)}"


def _memory(rows: Sequence[Row]) -> str:
    heading = ["model", "sparsity", "plan", "dense: model and step", "ours", "dense / ours"]
    heading += ["dense: step", "ours, transient", "dense / ours", "arena planned", "arena touched"]
    heading += ["processes of dense"]
    body = []
    for row in rows:
        dense, ours = row["dense"], row["session"]
        body.append(
            [
                *(row["model"], f"{row['sparsity']:.0%}", row["memory"] or "default"),
                *(f"{(s['peak_bytes'] - s['before_bytes']) / MEBI:.1f}" for s in (dense, ours)),
                f"{row['smaller_with_model']:.2f}",
                f"{(dense['peak_bytes'] - dense['loaded_bytes']) / MEBI:.1f}",
                f"{ours['transient_bytes'] / MEBI:.1f}",
                f"{row['smaller_step']:.2f}",
                *(f"{ours['planned_bytes']:,}", f"{ours['arena_peak_bytes']:,}"),
                str(dense["processes"]),
            ]
        )
    text = (
        "MiB, batch 16, each side in a process of its own: high-water mark of three steps over what "
        "was resident before the model was made (model and step), and when it was loaded (step). "
        "Of dense, the median of so many processes. A session touches its arena when it "
        "is opened, so the step is compared with the transient part of the arena or the growth of "
        "its steps, whichever is more. Arenas in bytes."
    )
    return f"{text}\n\n{_table(heading, body)}"


def _roofline(result: Result) -> str:
    if result["roofline"] is None:
        return "The ceilings of the machine were not measured: there was no C compiler."
    ceilings = [
        [
            level,
            f"{rates['bytes'] / 1024:,.0f}",
            f"{rates['load_bytes_per_second'] / 1e9:.1f}",
            f"{rates['load_bytes_per_second'] / 4 * 2 / 1e9:.1f}",
            f"{rates['copy_bytes_per_second'] / 1e9:.1f}",
        ]
        for level, rates in levels(result["roofline"]).items()
    ]
    heading = ["level", "KiB touched", "load GB/s", "GF/s with a load each", "copy GB/s"]
    rows = resnet18(result["steps"], masks="random")
    text = (
        f"One core, {8 * result['roofline']['vector_bytes']}-bit vectors: "
        f"{result['roofline']['peak_flops'] / 1e9:.1f} GF/s of multiply-adds in registers "
        "(tools/c/roofline.c).\n\n"
        f"{_table(heading, ceilings)}\n\n"
        "A step of ResNet-18, batch 16, random masks: what was counted, and the milliseconds that "
        "each part would take alone. Traffic counts every planned buffer as written once and read "
        "once (indices read only): more is moved where a buffer is passed over more than once, less "
        "where it stays in a cache."
    )
    if not rows:
        return text
    names = list(step_floors(result, rows[0]))
    body = []
    for _, row in sorted(by_sparsity(rows).items()):
        done = sum(work["done"] for work in row["multiply_adds"].values())
        seconds = row["seconds"]["median"]
        parts = step_floors(result, row)
        body.append(
            [
                *(f"{row['sparsity']:.0%}", f"{done / MEGA:,.0f}"),
                f"{row['traffic_bytes'] / MEGA:,.0f}",
                *(f"{1e3 * seconds:.3g}", f"{2 * done / seconds / 1e9:.1f}"),
                *(f"{1e3 * parts[name]:.3g}" for name in names),
            ]
        )
    heading = ["sparsity", "M multiply-adds", "MB moved", "measured ms", "GF/s", *names]
    return f"{text}\n\n{_table(heading, body)}"


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heading, ["---"] + ["---:"] * (len(heading) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
