import copy
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from sparsyfed.tools.demo_report import summary
from sparsyfed.tools.report import render

pytest.importorskip("matplotlib", reason="matplotlib is not installed")

ROUNDS = range(1, 5)
WORK = {"forward": 4_000_000, "d_input": 3_000_000, "d_weight": 4_000_000}
PARTS = {"index": 10_000, "weight": 40_000, "activation": 300_000, "mask": 2_000, "scratch": 500}


def training(arena: int, share: float) -> dict[str, Any]:
    return {
        "planned_arena_bytes": arena,
        "arena_peak_bytes": arena,
        "multiply_adds": {kind: int(share * count) for kind, count in WORK.items()},
    }


@pytest.fixture
def report() -> dict[str, Any]:
    """A report with made-up figures, to test the drawing alone."""
    devices = [
        {
            "id": f"watch-{number}",
            "profile": "watch",
            "rounds": 2,
            "backend": "native",
            "engine": "portable",
            "examples": 100 + number,
            "memory_bytes": 4_194_304,
            "planned_arena_bytes": 2_000_000,
            "base_rss_bytes": 28_000_000,
            "peak_rss_bytes": 31_000_000,
            "multiply_adds": sum(training(0, 0.05)["multiply_adds"].values()),
            "largest_round": training(2_000_000, 1.0),
            "last_round": training(800_000, 0.05),
        }
        for number in range(2)
    ]
    rounds = [
        {
            "round": number,
            "accuracy": 0.1 * number,
            "density_down": 1.0 / number,
            "bytes_down": 800_000 // number,
            "bytes_up": 70_000,
            "update_bytes": 35_000,
            "devices": 2,
            "seconds": 0.5,
            "multiply_adds": WORK,
        }
        for number in ROUNDS
    ]
    return {
        "final_accuracy": 0.731,
        "dense_reference_accuracy": 0.745,
        "accuracy_definition": "mean over the last 5 rounds",
        "dense_update_bytes": 400_000,
        "seed": 3,
        "seconds": 61.2,
        "command": "sparsyfed demo --out '<here>'",
        "versions": {"python": "3.12.1"},
        "machine": {"platform": "Linux", "processor": "some & other", "cpu_count": 2},
        "job": {
            "model": "watch_cnn",
            "beta": 1.25,
            "sparsity": 0.95,
            "rounds": 4,
            "epochs": 1,
            "batch_size": 16,
            "learning_rate": 1.0,
            "final_learning_rate": 0.01,
            "weight_decay": 0.001,
        },
        "model": {"prunable": 102_976},
        "data": {"held_out_examples": 364},
        "rounds": rounds,
        "devices": devices,
        "memory_parts": {"initial model": PARTS, "trained model": PARTS},
        "whole_run": {
            "bytes": 2_000_000,
            "dense_bytes": 6_400_000,
            "multiply_adds": 44_000_000,
            "dense_multiply_adds": 88_000_000,
        },
        "dense_reference": {
            "beta": 1.0,
            "learning_rate": 0.3,
            "final_learning_rate": 0.01,
            "rounds": [
                {
                    "round": number,
                    "accuracy": 0.11 * number,
                    "multiply_adds": {kind: 2 * count for kind, count in WORK.items()},
                }
                for number in ROUNDS
            ],
        },
    }


def test_the_page_is_the_same_each_time(report: dict[str, Any]) -> None:
    assert render(report) == render(copy.deepcopy(report))


def test_the_page_needs_nothing_but_itself(report: dict[str, Any]) -> None:
    page = render(report)
    assert "<script" not in page
    references = re.findall(r'(?:href|src)="([^"]*)"', page)
    assert references
    assert all(reference.startswith("#") for reference in references)
    assert not re.search(r"url\((?!#)|@import", page)


def test_the_page_holds_the_key_numbers_and_all_plots(report: dict[str, Any]) -> None:
    page = render(report)
    assert "73.1%" in page
    assert "74.5%" in page
    assert "11.4 × smaller" in page
    assert "20.0 × fewer" in page
    assert "dense 6.4 MB, 3.2 × smaller" in page
    assert "dense 88 M, 2.0 × fewer" in page
    assert page.count("<svg") == 6
    assert "equals the plan to the byte" in page


def test_devices_that_took_the_same_memory_are_one_group(report: dict[str, Any]) -> None:
    assert "each of the 2 devices" in render(report)
    report["devices"][1]["last_round"] = training(700_000, 0.05)
    page = render(report)
    assert "each of the 2 devices" not in page
    assert page.count(">watch-1<") > 1


def with_engines(report: dict[str, Any], natives: int) -> dict[str, Any]:
    """The report as it is if all devices but some train with another engine."""
    open_fields = ("planned_arena_bytes", "arena_peak_bytes", "multiply_adds")
    for device in report["devices"][natives:]:
        device |= {"backend": "onnxruntime", "engine": "onnxruntime 1.31.1"}
        device |= {"base_rss_bytes": 60_000_000, "peak_rss_bytes": 91_000_000}
        for content in (device, device["largest_round"], device["last_round"]):
            content.update(dict.fromkeys(open_fields))
    report["whole_run"]["multiply_adds"] = None
    return report


@pytest.mark.parametrize("natives", [0, 1])
def test_what_an_engine_does_not_tell_is_left_open(report: dict[str, Any], natives: int) -> None:
    page = render(with_engines(report, natives))
    assert "onnxruntime 1.31.1" in page
    assert "not counted" in page
    assert "not by all" in page
    assert "× fewer" not in page
    assert "31 MB" in page  # what training added
    assert page.count("<svg") == 4 + 2 * natives
    assert ("equals the plan to the byte" in page) == (natives > 0)


@pytest.mark.parametrize("natives", [0, 1])
def test_the_summary_names_each_engine_with_its_memory(
    report: dict[str, Any], natives: int
) -> None:
    text = summary(with_engines(report, natives), Path("out"))
    assert text.count("onnxruntime 1.31.1: process 60 MB before any model, 91 MB") == 2 - natives
    assert "multiply-adds" not in text
    assert ("equals the plan" in text) == (natives > 0)


def test_no_two_columns_have_the_same_head(report: dict[str, Any]) -> None:
    for table in re.findall(r"<table>.*?</table>", render(report), flags=re.DOTALL):
        heads = re.findall(r"<th>(.*?)</th>", table)
        assert heads
        assert len(heads) == len(set(heads))


def test_memory_that_was_not_as_planned_is_shown_as_such(report: dict[str, Any]) -> None:
    report["devices"][1]["last_round"]["arena_peak_bytes"] -= 1
    assert "differs from the plan" in render(report)


def test_names_in_the_page_are_unique_and_texts_are_escaped(report: dict[str, Any]) -> None:
    page = render(report)
    names = re.findall(r'\bid="([^"]+)"', page)
    assert len(names) == len(set(names))
    assert "<here>" not in page
    assert "some &amp; other" in page


def test_every_element_is_closed(report: dict[str, Any]) -> None:
    class Balance(HTMLParser):
        open: list[str]

        def handle_starttag(self, tag: str, _attributes: object) -> None:
            if tag not in ("meta", "br"):
                self.open.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert self.open.pop() == tag

    parser = Balance()
    parser.open = []
    parser.feed(render(report))
    assert parser.open == []


def test_a_page_of_one_round_can_be_drawn(report: dict[str, Any]) -> None:
    report["rounds"] = report["rounds"][:1]
    report["dense_reference"]["rounds"] = report["dense_reference"]["rounds"][:1]
    assert "<svg" in render(report)
