"""The plots of the demo's report."""

from collections.abc import Callable, Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from sparsyfed.tools.drawing import DENSE, FOURTH, SPARSE, THIRD, USES, Plot, draw_plot
from sparsyfed.tools.quantities import byte_text, count_text

Report = Mapping[str, Any]


def draw_all(report: Report) -> list[Plot]:
    """The report's plots in reading order. Same report, same bytes."""

    def plot(title: str, caption: str, draw: Callable[[Axes, Report], None]) -> Plot:
        return draw_plot(title, caption, lambda axes: draw(axes, report))

    plots = [
        plot(
            "Accuracy",
            "Share of the held-out wearers' windows classified correctly after each round.",
            _accuracy,
        ),
        plot(
            "Density",
            "Share of the prunable weights that are not zero in the model sent to the devices. "
            "Logarithmic.",
            _density,
        ),
        plot(
            "Bytes of a round",
            "MQTT payloads that the coordinator sent and received, control messages included, "
            "against dense 32-bit values for as many devices. Logarithmic.",
            _bytes,
        ),
    ]
    native = native_devices(report)
    if native:
        arena = plot(
            "Memory",
            "Training arena of a device in the round that took most and in its last: what the plan "
            "said before anything ran, and what the session then touched. The interpreter is not in it.",
            _memory,
        )
        by_use = plot(
            "Memory by use",
            "What the arena holds at its fullest step: plans for the initial model, which round 1 "
            "trains, and for the trained model, which a further round would train.",
            _memory_by_use,
        )
        plots += [arena, by_use]
    if len(native) < len(report["devices"]):
        processes = plot(
            "Memory of processes",
            "Resident memory of each device process: with its engine loaded before it had a model, "
            "and what training added at its peak.",
            _processes,
        )
        plots.append(processes)
    if report["whole_run"]["multiply_adds"] is not None:
        work = plot(
            "Multiply-adds",
            "Multiply-adds of all devices in a round, counted while it ran, as a share of dense "
            "training on the same data.",
            _multiply_adds,
        )
        plots.append(work)
    return plots


def native_devices(report: Report) -> list[Report]:
    """The devices with the native core: those with an arena that was planned."""
    return [
        device
        for device in report["devices"]
        if device["largest_round"]["planned_arena_bytes"] is not None
    ]


def _rounds(report: Report) -> list[int]:
    return [entry["round"] for entry in report["rounds"]]


def _column(report: Report, name: str) -> list[float]:
    return [entry[name] for entry in report["rounds"]]


def _round_axis(axes: Axes, report: Report) -> None:
    last = _rounds(report)[-1]
    step = max(1, round(last / 6))
    between = [number for number in range(step, last, step) if last - number > step / 2]
    axes.set_xlabel("round")
    axes.set_xticks(sorted({1, *between, last}))
    axes.set_xlim(1 - 0.02 * last, 1.02 * last)
    axes.grid(visible=False, axis="x")


def _log_axis(axes: Axes, text: Callable[[float], str]) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="y", which="minor", length=0)


def _accuracy(axes: Axes, report: Report) -> None:
    rounds = _rounds(report)
    dense = [entry["accuracy"] for entry in report["dense_reference"]["rounds"]]
    axes.plot(rounds, dense, color=DENSE, label="dense FedAvg")
    axes.plot(rounds, _column(report, "accuracy"), color=SPARSE, label=_system(report))
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    axes.legend(loc="lower right")
    _round_axis(axes, report)


def _density(axes: Axes, report: Report) -> None:
    target = 1 - report["job"]["sparsity"]
    axes.axhline(target, color=THIRD, linestyle="--", label="kept in each update")
    axes.plot(
        _rounds(report), _column(report, "density_down"), "o-", ms=4, color=SPARSE, label="model"
    )
    _log_axis(axes, lambda value: f"{100 * value:g}%")
    axes.legend()
    _round_axis(axes, report)


def _bytes(axes: Axes, report: Report) -> None:
    dense = [report["dense_update_bytes"] * entry["devices"] for entry in report["rounds"]]
    axes.plot(_rounds(report), dense, color=DENSE, label="dense, each way")
    axes.plot(_rounds(report), _column(report, "bytes_down"), color=SPARSE, label="down")
    axes.plot(_rounds(report), _column(report, "bytes_up"), "--", color=THIRD, label="up")
    _log_axis(axes, byte_text)
    axes.legend(loc="center right")
    _round_axis(axes, report)


def _memory(axes: Axes, report: Report) -> None:
    series = [
        ("largest round, planned", "largest_round", "planned_arena_bytes", DENSE),
        ("largest round, measured", "largest_round", "arena_peak_bytes", FOURTH),
        ("last round, planned", "last_round", "planned_arena_bytes", THIRD),
        ("last round, measured", "last_round", "arena_peak_bytes", SPARSE),
    ]
    sizes = {
        device["id"]: [device[training][field] for _, training, field, _ in series]
        for device in native_devices(report)
    }
    alike = len({tuple(size) for size in sizes.values()}) == 1
    if alike:
        sizes = {f"each of the {len(sizes)} devices": next(iter(sizes.values()))}
    width = 0.8 / len(series)
    for number, (label, _, _, color) in enumerate(series):
        places = [row + (number - 1.5) * width for row in range(len(sizes))]
        heights = [size[number] for size in sizes.values()]
        bars = axes.bar(places, heights, width * 0.92, color=color, label=label)
        if alike:
            axes.bar_label(bars, [byte_text(height) for height in heights], padding=3)
    axes.set_xticks(range(len(sizes)), list(sizes))
    if not alike:
        axes.tick_params(axis="x", labelrotation=30)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: byte_text(value)))
    axes.set_ylim(top=axes.get_ylim()[1] * 1.38)
    axes.grid(visible=False, axis="x")
    axes.legend(ncols=2, loc="upper center", fontsize=10)


def _processes(axes: Axes, report: Report) -> None:
    measured = [device for device in report["devices"] if device["base_rss_bytes"] is not None]
    names = [f"{device['id']}\n{device['backend']}" for device in measured]
    base = [device["base_rss_bytes"] for device in measured]
    grown = [device["peak_rss_bytes"] - device["base_rss_bytes"] for device in measured]
    axes.barh(names, base, 0.6, color=DENSE, label="before any model")
    bars = axes.barh(names, grown, 0.6, base, color=SPARSE, label="training added")
    axes.bar_label(bars, [byte_text(count) for count in grown], padding=3)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: byte_text(value)))
    axes.set_xlim(0, max(map(sum, zip(base, grown, strict=True)), default=1) * 1.2)
    axes.set_ylim(len(measured) - 0.4, -1.4)
    axes.tick_params(axis="y", labelsize=9)
    axes.grid(visible=False, axis="y")
    axes.legend(ncols=2, loc="upper center", fontsize=10)


def _memory_by_use(axes: Axes, report: Report) -> None:
    states = report["memory_parts"]
    left = [0.0] * len(states)
    for (label, kinds), color in zip(USES.items(), [SPARSE, THIRD, FOURTH, DENSE], strict=True):
        sizes = [sum(parts.get(kind, 0) for kind in kinds) / 1000 for parts in states.values()]
        axes.barh(list(states), sizes, 0.55, left, color=color, label=label)
        left = [begin + size for begin, size in zip(left, sizes, strict=True)]
    for row, size in enumerate(left):
        axes.annotate(
            byte_text(1000 * size), (size, row), (5, 0), textcoords="offset points", va="center"
        )
    axes.set_xlabel("kB")
    axes.set_xlim(0, max(left) * 1.2)
    axes.set_ylim(len(states) - 0.5, -1.15)
    axes.grid(visible=False, axis="y")
    axes.legend(ncols=2, loc="upper center", fontsize=10, handlelength=1.2)


def _multiply_adds(axes: Axes, report: Report) -> None:
    dense = report["dense_reference"]["rounds"][-1]["multiply_adds"]
    bars = {
        "dense FedAvg": dense,
        "largest round": _total(report, "largest_round"),
        "last round": _total(report, "last_round"),
        "mean of all rounds": {
            kind: sum(entry["multiply_adds"][kind] for entry in report["rounds"])
            / len(report["rounds"])
            for kind in dense
        },
    }
    kinds = {
        "forward": ("forward", SPARSE),
        "d_input": ("gradients of inputs", THIRD),
        "d_weight": ("gradients of weights", FOURTH),
    }
    whole = sum(dense.values())
    left = [0.0] * len(bars)
    for kind, (label, color) in kinds.items():
        shares = [counts[kind] / whole for counts in bars.values()]
        axes.barh(list(bars), shares, 0.55, left, color=color, label=label)
        left = [begin + share for begin, share in zip(left, shares, strict=True)]
    for row, share in enumerate(left):
        text = f"{share:.1%}, {count_text(share * whole)}"
        axes.annotate(text, (share, row), (5, 0), textcoords="offset points", va="center")
    axes.set_xlim(0, max(left) * 1.34)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
    axes.set_ylim(len(bars) - 0.5, -1.25)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    axes.grid(visible=False, axis="y")
    axes.legend(ncols=3, loc="upper center", fontsize=10, handlelength=1.2, columnspacing=1.2)


def _total(report: Report, training: str) -> dict[str, int]:
    """Multiply-adds of all devices together, by kind."""
    counts = [device[training]["multiply_adds"] for device in report["devices"]]
    return {kind: sum(count[kind] for count in counts) for kind in counts[0]}


def _system(report: Report) -> str:
    return f"SparsyFed, {report['job']['sparsity']:.0%} sparse"
