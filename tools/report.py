"""The demo's report as one HTML page that needs nothing but itself."""

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from sparsyfed.tools.demo_boards import BOARDS
from sparsyfed.tools.page import figures, numbers, page, table
from sparsyfed.tools.quantities import byte_text, count_text, optional_bytes
from sparsyfed.tools.report_plots import draw_all, native_devices


def render(report: Mapping[str, Any]) -> str:
    """The page for a report of the demo. Same report, same bytes."""
    job = report["job"]
    return page(
        f"SparsyFed: {job['model']}",
        f"<h1>{_who(report)} trained one model at "
        f"{job['sparsity']:.0%} sparsity</h1>\n"
        f'<p class="muted">{escape(_subtitle(report))}</p>\n'
        f"{numbers(_numbers(report))}\n"
        f"<h2>Course of the run</h2>\n{figures(draw_all(report))}\n"
        f"<h2>Devices</h2>\n{_device_table(report)}{_memory_table(report)}\n"
        f"<h2>Rounds</h2>\n{_round_table(report)}\n"
        f"<h2>How this was made</h2>\n{_method(report)}",
    )


def _who(report: Mapping[str, Any]) -> str:
    boards = sum(device["id"] in BOARDS.names for device in report["devices"])
    processes = f"{len(report['devices']) - boards} device processes"
    return f"{processes} and {boards} emulated boards" if boards else processes


def _subtitle(report: Mapping[str, Any]) -> str:
    job = report["job"]
    examples = sum(device["examples"] for device in report["devices"])
    return (
        f"Simulated watches: {_who(report)} on this machine, each process with the recordings of one "
        f"wearer, {examples:,} windows of motion data in all. Model {job['model']}, "
        f"{report['model']['prunable']:,} prunable weights; {job['rounds']} rounds over MQTT. Tested "
        f"on {report['data']['held_out_examples']} windows of wearers that no process trains on."
    )


def _numbers(report: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The key numbers: value, what it is, what it stands against."""
    devices = report["devices"]
    update = report["rounds"][-1]["update_bytes"]
    total = report["whole_run"]
    numbers = [
        (
            f"{report['final_accuracy']:.1%}",
            "accuracy, one seed, two held-out wearers",
            f"dense FedAvg {report['dense_reference_accuracy']:.1%}; {report['accuracy_definition']}",
        ),
        (
            f"{report['dense_update_bytes'] / update:.1f} × smaller",
            "largest update of the last round",
            f"{byte_text(update)} as plain CSR, {byte_text(report['dense_update_bytes'])} dense. "
            + _whole_run("both ways: ", byte_text, total["bytes"], total["dense_bytes"], "smaller"),
        ),
    ]
    if total["multiply_adds"] is not None:
        done = sum(device["multiply_adds"] for device in devices)
        dense = sum(report["dense_reference"]["rounds"][-1]["multiply_adds"].values())
        whole = _whole_run(
            "", count_text, total["multiply_adds"], total["dense_multiply_adds"], "fewer"
        )
        numbers.append(
            (
                f"{dense / done:.1f} × fewer",
                "multiply-adds in the last round",
                f"{count_text(done)} of all devices, dense {count_text(dense)}. {whole}",
            )
        )
    native = native_devices(report)
    if native:
        largest = max(device["last_round"]["planned_arena_bytes"] for device in native)
        what = "training arena of a device, last round"
        numbers.append((byte_text(largest), what, _memory_comparison(native)))
    return numbers


def _whole_run(
    what: str, text: Callable[[float], str], count: int, dense: int, relation: str
) -> str:
    ratio = f"{dense / count:.1f} × {relation}"
    return f"Whole run, {what}{text(count)}, dense {text(dense)}, {ratio}"


def _memory_comparison(devices: Sequence[Mapping[str, Any]]) -> str:
    most = max(device["largest_round"]["planned_arena_bytes"] for device in devices)
    exact = all(
        device[training]["planned_arena_bytes"] == device[training]["arena_peak_bytes"]
        for device in devices
        for training in ("largest_round", "last_round")
    )
    verdict = "equals the plan to the byte" if exact else "differs from the plan, see the table"
    peaks = [device["peak_rss_bytes"] for device in devices if device["peak_rss_bytes"] is not None]
    process = f". Without the interpreter: process peak {byte_text(max(peaks))}" if peaks else ""
    return f"{byte_text(most)} in the largest round; measured {verdict}{process}"


def _device_table(report: Mapping[str, Any]) -> str:
    rows = [
        [
            device["id"],
            device["profile"],
            _engine(device),
            str(device["rounds"]),
            f"{device['examples']:,}",
            "not counted"
            if device["multiply_adds"] is None
            else count_text(device["multiply_adds"]),
        ]
        for device in report["devices"]
    ]
    heading = ["device", "profile", "engine", "rounds", "windows", "multiply-adds, last round"]
    return table(heading, rows)


def _memory_table(report: Mapping[str, Any]) -> str:
    rows = [
        [
            device["id"],
            f"{device['memory_bytes']:,}",
            *(
                _exact_bytes(device[training][what])
                for training in ("largest_round", "last_round")
                for what in ("planned_arena_bytes", "arena_peak_bytes")
            ),
            optional_bytes(device["base_rss_bytes"]),
            optional_bytes(device["peak_rss_bytes"]),
        ]
        for device in report["devices"]
    ]
    heading = ["memory of the device, bytes", "declared for training"]
    heading += ["planned, largest round", "measured, largest round"]
    heading += ["planned, last round", "measured, last round"]
    heading += ["process before any model", "process peak"]
    note = (
        "Planned and measured memory is that of the training arena alone, and so is what a native "
        "device declares; another engine has no arena. Process: resident memory of the whole device "
        "process, with interpreter, MQTT client and engine, before it has a model and at its peak. "
        "A board declares its RAM; its peak is the firmware's data and stack, arena, model structure "
        "and windows."
    )
    return f'{table(heading, rows)}<p class="muted">{note}</p>'


def _engine(device: Mapping[str, Any]) -> str:
    """Name of the engine, and its version or kernels."""
    backend: str = device["backend"]
    engine: str = device["engine"]
    if not engine or engine.startswith(backend):
        return engine or backend
    return f"{backend}, {engine}"


def _exact_bytes(count: int | None) -> str:
    return "–" if count is None else f"{count:,}"


def _round_table(report: Mapping[str, Any]) -> str:
    counted = report["whole_run"]["multiply_adds"] is not None
    dense = {entry["round"]: entry["accuracy"] for entry in report["dense_reference"]["rounds"]}
    rows = [
        [
            str(entry["round"]),
            f"{entry['accuracy']:.1%}",
            f"{dense[entry['round']]:.1%}",
            f"{entry['density_down']:.2%}",
            f"{entry['bytes_down']:,}",
            f"{entry['bytes_up']:,}",
            f"{entry['update_bytes']:,}",
            count_text(sum(entry["multiply_adds"].values())) if counted else "not by all",
            str(entry["devices"]),
            f"{entry['seconds']:.2f}",
        ]
        for entry in report["rounds"]
    ]
    heading = ["round", "accuracy", "accuracy, dense FedAvg", "density of the model sent"]
    heading += ["sent to devices, bytes", "received, bytes", "largest update, bytes"]
    heading += ["multiply-adds", "devices", "seconds"]
    note = (
        "Seconds: from the end of the round before to the new model, evaluated; offers, transfers, "
        "training, averaging and evaluation. Round 1 begins with the coordinator, so the start of "
        "the device processes is in it."
    )
    return f'{table(heading, rows)}<p class="muted">{note}</p>'


def _method(report: Mapping[str, Any]) -> str:
    job, dense, machine = report["job"], report["dense_reference"], report["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in sorted(report["versions"].items()))
    sparsyfed = (
        f"SparsyFed: β = {job['beta']}, seed {report['seed']}, {job['epochs']} local epoch, batches "
        f"of {job['batch_size']}, learning rate {job['learning_rate']} → "
        f"{job['final_learning_rate']}, weight decay {job['weight_decay']}."
    )
    reference = (
        f"Dense FedAvg: β = {dense['beta']}, nothing pruned, learning rate "
        f"{dense['learning_rate']} → {dense['final_learning_rate']}; the same data, seed, rounds "
        "and runtime, trained in this very run, by virtual devices in the demo's own process."
    )
    accuracy = (
        f"Accuracies in the summary: {report['accuracy_definition']}; one seed. The learning rates "
        "were chosen by trying some on these held-out wearers, there is no separate validation "
        "set: so the accuracies of both systems are somewhat optimistic."
    )
    place = (
        f"Machine: {machine['platform']}, {machine['processor']}, {machine['cpu_count']} cores. "
        f"Versions: {versions}. The whole run took {report['seconds']:.0f} s."
    )
    texts = (sparsyfed, reference, accuracy, place)
    paragraphs = "".join(f"<p>{escape(text)}</p>\n" for text in texts)
    return f"{paragraphs}<p>Command: <code>{escape(report['command'])}</code></p>"
