"""The sections of the page on keywords that are about boards, and about how it was made."""

from collections.abc import Sequence

from sparsyfed.tools.keyword_boards import BOARD, board_settings
from sparsyfed.tools.keyword_figures import Figure, Figures
from sparsyfed.tools.keyword_fleet import MixedRun
from sparsyfed.tools.keyword_points import (
    BATCH_SIZE,
    BETA,
    BUDGET,
    DEVICES_PER_ROUND,
    EPOCHS,
    FINAL_SHARE,
    LARGER_BATCH,
    LAST_ROUNDS,
    LONGER_ROUNDS,
    RATES,
    ROUNDS,
    SPOTTER,
    SPOTTER_DENSE,
    WEIGHT_DECAY,
)
from sparsyfed.tools.keyword_results import (
    FAMILIES,
    PointResult,
    chosen_rate,
    mixed_points,
    tuning_tasks,
)
from sparsyfed.tools.keyword_text import KIB, joined, kibibytes, table
from sparsyfed.tools.quantities import byte_text


def spotter(figures: Figures) -> str:
    """What the built-in model takes, against the limits that it was made for."""
    sparse = figures.find("boards", board_settings(SPOTTER, BATCH_SIZE))
    larger = figures.find("boards", board_settings(SPOTTER, LARGER_BATCH))
    dense = figures.find("boards", board_settings(SPOTTER_DENSE, BATCH_SIZE))
    if sparse is None or larger is None or dense is None:
        return ""
    ratio, whole = dense["step_ticks"] / sparse["step_ticks"], dense["ram_bytes"]
    name = "RAM of the same net dense, batch 1"
    rows = [
        _bound("RAM, batch 1", sparse["ram_bytes"], 128 * KIB, 96 * KIB),
        _bound(f"RAM, batch {LARGER_BATCH}", larger["ram_bytes"], 256 * KIB),
        _bound("code and constants", sparse["text_bytes"], 32 * KIB),
        [name, f"{whole:,}", f"> {512 * KIB:,}", _met(whole > 512 * KIB), "", ""],
        ["instructions, dense over sparse", f"{ratio:.1f}", "≥ 6", _met(ratio >= 6), "", ""],
    ]
    exact = all(
        each["same_bits_as_host"] and each["planned_arena_bytes"] == each["touched_arena_bytes"]
        for each in (sparse, larger, dense)
    )
    text = (
        f"`kws_cnn` with its default widths at {SPOTTER.sparsity:.0%}: {SPOTTER.name} above. Its "
        f"update has {'the' if exact else 'NOT always the'} bits of the portable kernels on the host, "
        f"and the arena touched is {'the' if exact else 'NOT always the'} planned one to the byte."
    )
    return f"{text}\n\n{table(['', 'measured', 'limit', '', 'goal', ''], rows)}"


def _bound(name: str, measured: int, limit: int, goal: int | None = None) -> list[str]:
    row = [name, f"{measured:,}", f"≤ {limit:,}", _met(measured <= limit)]
    return [*row, *(("", "") if goal is None else (f"≤ {goal:,}", _met(measured <= goal)))]


def _met(is_met: bool) -> str:
    return "met" if is_met else "missed"


def mixed(figures: Figures, results: Sequence[PointResult]) -> str:
    """The runs of boards and Linux devices together."""
    wanted = [MixedRun(result.point, result.rate) for result in mixed_points(results)]
    found = [figures.find("mixed", each.settings()) for each in wanted]
    runs = [run for run in found if run is not None]
    if not runs:
        return "Not run yet."
    settings = runs[-1]["settings"]
    job, boards = settings["job"], settings["boards"]
    how = (
        f"{len(boards['boards'])} emulated boards of {kibibytes(boards['ram_bytes'])}, "
        f"{boards['boards'][0]}, behind a gateway, and {settings['linux_devices']} Linux processes, "
        f"over MQTT (mosquitto), {job['rounds']} rounds, every device in each, but boards not in dense "
        "ones; the other settings as above. A board has the clips of one speaker; the Linux devices "
        "share the other speakers, as hubs do, so a round has many more steps on a device than above. "
        "Accuracy on the speakers held out; one seed."
    )
    return "\n\n".join([how, *map(_mixed_run, runs)])


def _mixed_run(run: Figure) -> str:
    point, rounds = run["settings"]["point"], run["rounds"]
    last = rounds[-1]
    count = run["settings"]["job"]["dense_rounds"]
    dense = f" after {count} dense rounds" if count else ""
    by_round = ", ".join(f"{entry['accuracy']:.1%}" for entry in rounds)
    text = (
        f"Widths {joined(point['widths'])}, sparsity {point['sparsity']:.1%}{dense}: round by "
        f"round {by_round}. The last round took {last['bytes_down']:,} bytes down and "
        f"{last['bytes_up']:,} up, of all devices, messages included."
    )
    heading = ["device", "", "rounds", "clips", "kernels", "arena planned", "arena touched"]
    heading += ["RAM or process at most", "seconds, last round"]
    rows = [_device(device, run["settings"]) for device in run["devices"]]
    return f"{text}\n\n{table(heading, rows)}"


def _device(device: Figure, settings: Figure) -> list[str]:
    is_board = device["id"].startswith(settings["boards"]["gateway"])
    return [
        device["id"],
        "board" if is_board else "Linux",
        *(f"{device['rounds']}", f"{device['examples']:,}", device["engine"] or "portable"),
        *(f"{device['planned_arena_bytes']:,}", f"{device['arena_peak_bytes']:,}"),
        *(byte_text(device["peak_rss_bytes"]), f"{device['seconds']:.1f}"),
    ]


def method(figures: Figures) -> str:
    """How the runs were done, and the commands."""
    about = figures.content
    machine = about["machine"]
    recipe = (
        "A speaker is a device. A fixed fifth of the speakers is held out for the test, the others "
        f"train; a clip of silence is given to a speaker by chance. {LONGER_ROUNDS} rounds, "
        f"{DEVICES_PER_ROUND} devices drawn for each, {EPOCHS} local epochs, batches of {BATCH_SIZE}, "
        f"SGD with weight decay {WEIGHT_DECAY:g}, a learning rate that falls exponentially to "
        f"{FINAL_SHARE:g} of itself, no clipping. Dense: FedAvg, β = 1. Sparse: SparsyFed, β = "
        f"{BETA}, layer budgets `{BUDGET}`. Sparse-wide: sparse from the first round on, so that boards can "
        "train from the start: the support is that of the largest initial values and never grows. "
        "Pruned-wide: the support is that of the largest values after the dense rounds; RAM and "
        "instructions are those of the sparse-wide point with as many weights in each layer. Saved "
        "inputs are pruned as the method says: a layer of which 3 % is stored keeps 3 % of its "
        f"inputs for the weight gradient. Accuracy: mean of the last {LAST_ROUNDS} rounds, "
        "on the test speakers: the recommended point, and the best of a family within a limit, are chosen "
        "by it, too, so that theirs is somewhat flattered. A seed is "
        "that of initial values, draws and shuffles; the split is one and the same."
    )
    rates = (
        "One learning rate for each family, chosen without the speakers held out: there a fifth of "
        f"the other speakers is the test, and training ends after {ROUNDS} rounds. In bold the one that was taken."
    )
    kernels = (
        f"Training here: kernels `{about['kernels']}`, one thread a run; the boards' own portable "
        f"kernels agree within rounding. Board: `{BOARD}` in QEMU, which counts instructions, not "
        "cycles."
    )
    where = (
        f"Date {about['date']}, sparsyfed {about['versions']['sparsyfed']}, {machine['platform']}, "
        f"{machine['processor']}, {machine['cpu_count']} cores. Commands, the last of each step:"
    )
    commands = dict.fromkeys(about["commands"].values())
    listed = "\n".join(f"    {command}" for command in commands)
    return "\n\n".join([recipe, rates, _rates(figures), kernels, where, listed])


def _rates(figures: Figures) -> str:
    chosen = {family: chosen_rate(figures, family, ROUNDS) for family in FAMILIES}
    found: dict[tuple[str, str], dict[float, float]] = {}
    for task in tuning_tasks(ROUNDS):
        figure = figures.find("tuning", task.settings())
        if figure is not None:
            row = found.setdefault((task.point.family, task.point.name), {})
            row[task.rate] = figure["final_accuracy"]
    columns = sorted({rate for rates in RATES.values() for rate in rates})
    rows = [
        [family, name, *(_rate_cell(row.get(rate), rate == chosen[family]) for rate in columns)]
        for (family, name), row in found.items()
    ]
    return table(["family", "point", *(f"{rate:g}" for rate in columns)], rows)


def _rate_cell(accuracy: float | None, is_chosen: bool) -> str:
    if accuracy is None:
        return ""
    return f"**{accuracy:.1%}**" if is_chosen else f"{accuracy:.1%}"
