"""The page on keywords, from the figures of the study alone."""

from collections.abc import Sequence

from sparsyfed.tools.keyword_answer import answer, longer
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
    RATES,
    ROUNDS,
    SEEDS,
    SPOTTER,
    SPOTTER_DENSE,
    WEIGHT_DECAY,
    WIDER,
)
from sparsyfed.tools.keyword_results import (
    FAMILIES,
    PointResult,
    chosen_rate,
    mixed_points,
    point_results,
    training_tasks,
    tuning_tasks,
)
from sparsyfed.tools.keyword_tables import KIB, described, joined, kibibytes, strides, table
from sparsyfed.tools.plot_files import PlotFile
from sparsyfed.tools.quantities import byte_text

SOURCE = "http://download.tensorflow.org/data/speech_commands_test_set_v0.02.tar.gz"
INTRODUCTION = (
    "# Keyword spotting: what trains best on a microboard?\n\n"
    "With this much RAM, and this many instructions a step: is a narrow net that keeps all its "
    "weights better, or a wide one of which few are stored? Both are trained in federated rounds by "
    "the native runtime, and measured on an emulated Cortex-M4F. The wide ones start sparse, or are "
    "pruned when other devices than boards have trained them for a while.\n\n"
    "Data: log-mel features of the *test set* of Speech Commands v0.02 (P. Warden, "
    "[arXiv 1804.03209](https://arxiv.org/abs/1804.03209); Google, "
    "[CC BY 4.0](https://creativecommons.org/licenses/by/4.0/)): 4,890 clips of 239 speakers, 12 "
    "classes; here each value is the mean of two frames and two bands, and each band has mean 0 and "
    "deviation 1. The training set is twenty times larger and was not there: accuracies compare the "
    "points of this page with each other, and with nothing else. The file is not part of this "
    "project. `tools/keyword_data.py` says what it has to hold; the clips are "
    f"[speech_commands_test_set_v0.02.tar.gz]({SOURCE})."
)


def markdown(figures: Figures, plots: Sequence[PlotFile]) -> str:
    """The page. Same figures, same bytes."""
    results = point_results(figures, training_tasks(figures, ROUNDS))
    sections = [
        INTRODUCTION,
        "## Answer",
        answer(results),
        "## Points",
        _points(results),
        "## As many weights in wider nets",
        _wider(results),
        "\n\n".join(f"![{plot.caption}]({plot.file_name})\n\n{plot.caption}" for plot in plots),
        "## Three times as many rounds",
        longer(figures, results),
        "## A spotter with 110,464 weights on a board",
        _spotter(figures),
        "## Boards and Linux devices in one fleet",
        _mixed(figures, results),
        "## How",
        _how(figures),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _points(results: Sequence[PointResult]) -> str:
    heading = ["point", "widths", "strides", "sparsity", "weights", "stored", "rate"]
    heading += [*(f"seed {seed}" for seed in SEEDS), "mean", "RAM, bytes", "instructions"]
    heading += ["bytes a round"]
    text = (
        "RAM: all that the smallest board has which trains the point at batch 1: the firmware's data "
        "and stack, model structure, one example, and the arena. Instructions: of one step there. "
        "Bytes: the state down and the update up, of one device, as plain CSR."
    )
    return f"{text}\n\n{table(heading, [_point(result) for result in results])}"


def _point(result: PointResult) -> list[str]:
    point, board = result.point, result.board
    missing = len(SEEDS) - len(result.accuracies)
    return [
        *(point.name, joined(point.widths), strides(point)),
        *(f"{point.sparsity:.1%}", f"{board['positions']:,}", f"{board['stored']:,}"),
        f"{result.rate:g}",
        *(f"{accuracy:.1%}" for accuracy in result.accuracies),
        *["-"] * missing,
        f"{result.accuracy:.1%}",
        *(f"{result.ram_bytes:,}", f"{result.instructions:,}", f"{result.round_bytes:,}"),
    ]


def _wider(results: Sequence[PointResult]) -> str:
    """What width does to nets that store as many weights."""
    named = {result.point.name: result for result in results}
    rows = [
        [
            name,
            described(named[name].point),
            f"{named[name].board['stored']:,}",
            f"{named[name].board['stored'] / named[name].board['positions']:.1%}",
            f"{named[name].accuracy:.1%}",
        ]
        for series in WIDER
        for name in series
        if name in named
    ]
    return table(["point", "", "weights stored", "density", "accuracy"], rows)


def _spotter(figures: Figures) -> str:
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


def _mixed(figures: Figures, results: Sequence[PointResult]) -> str:
    """The runs of boards and Linux devices together."""
    wanted = [MixedRun(result.point, result.rate) for result in mixed_points(results)]
    found = [figures.find("mixed", mixed.settings()) for mixed in wanted]
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


def _how(figures: Figures) -> str:
    about = figures.content
    machine = about["machine"]
    recipe = (
        "A speaker is a device. A fixed fifth of the speakers is held out for the test, the others "
        f"train; a clip of silence is given to a speaker by chance. {ROUNDS} rounds, "
        f"{DEVICES_PER_ROUND} devices drawn for each, {EPOCHS} local epochs, batches of {BATCH_SIZE}, "
        f"SGD with weight decay {WEIGHT_DECAY:g}, a learning rate that falls exponentially to "
        f"{FINAL_SHARE:g} of itself, no clipping. Dense: FedAvg, β = 1. Sparse: SparsyFed, β = "
        f"{BETA}, layer budgets `{BUDGET}`. Sparse-wide: sparse from the first round on, so that boards can "
        "train from the start: the support is that of the largest initial values and never grows. "
        "Pruned-wide: the support is that of the largest values after the dense rounds; RAM and "
        "instructions of a board are those of the sparse-wide point with as many weights in each layer. "
        "Saved inputs are pruned as the method says: a layer of which 3 % is stored keeps 3 % of its "
        f"inputs for the weight gradient. Accuracy: mean of the last {LAST_ROUNDS} rounds, "
        "on the test speakers: the recommended point, and the best of a family within a limit, are chosen "
        "by it, too, so that theirs is somewhat flattered. A seed is "
        "that of initial values, draws and shuffles; the split is one and the same."
    )
    rates = (
        "One learning rate for each family, chosen without the speakers held out: there a fifth of "
        "the other speakers is the test. In bold the one that was taken."
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
