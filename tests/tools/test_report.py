import copy
import re
from html.parser import HTMLParser
from typing import Any

import pytest

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
            "examples": 100 + number,
            "memory_bytes": 4_194_304,
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
