"""The ceilings of one core of this machine: arithmetic, and memory by the size of what is touched."""

import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
BUILD = ("-std=gnu11", "-O3", "-march=native", "-ffp-contract=fast", "-Wno-psabi")


def measure_roofline() -> dict[str, Any] | None:
    """What tools/c/roofline.c measures, with the sizes of the caches; None without a C compiler.

    Installed from a wheel the C file is not there: None, too.
    """
    compiler = shutil.which("cc")
    source = resources.files("sparsyfed.tools") / "c" / "roofline.c"
    if compiler is None or not source.is_file():
        return None
    with tempfile.TemporaryDirectory(prefix="sparsyfed-roofline-") as folder:
        program = Path(folder) / "roofline"
        code = Path(folder) / "roofline.c"
        code.write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
        subprocess.run([compiler, *BUILD, str(code), "-o", str(program)], check=True)
        answer = subprocess.run([program], capture_output=True, check=True)
    measured: dict[str, Any] = json.loads(answer.stdout)
    return measured | {"caches": cache_sizes()}


def cache_sizes() -> dict[str, int]:
    """Bytes of the data caches of one core, by level; empty where the system does not say."""
    sizes = {}
    for index in sorted(CACHES.glob("index*")):
        kind, level, size = (
            (index / name).read_text(encoding="ascii").strip() for name in ("type", "level", "size")
        )
        found = re.fullmatch(r"(\d+)K", size)
        if kind != "Instruction" and found is not None:
            sizes[f"L{level}"] = 1024 * int(found[1])
    return sizes


def levels(measured: Mapping[str, Any]) -> dict[str, Mapping[str, float]]:
    """Rates by level: at the largest size that takes half of a cache, and at the largest of all."""
    sizes: Sequence[Mapping[str, float]] = measured["sizes"]
    rates = {}
    for level, size in measured["caches"].items():
        inside = [each for each in sizes if each["bytes"] <= size / 2]
        if inside:
            rates[level] = inside[-1]
    if sizes[-1]["bytes"] >= 4 * max(measured["caches"].values(), default=0):
        rates["memory"] = sizes[-1]
    return rates


def floors(
    measured: Mapping[str, Any], multiply_adds: float, traffic_bytes: float
) -> dict[str, float]:
    """Seconds of a step that did nothing else than each of these.

    Its multiply-adds, from registers or with a load each from a cache, and its traffic at the copy
    rate of the last cache and of memory.
    """
    rates = levels(measured)
    seconds = {"multiply-adds in registers": 2 * multiply_adds / measured["peak_flops"]}
    for level in [name for name in rates if name in {"L1", "L2"}]:
        loads = 4 * multiply_adds / rates[level]["load_bytes_per_second"]
        seconds[f"multiply-adds, each with a load from {level}"] = loads
    for level in [name for name in rates if name not in {"L1", "L2"}]:
        copies = traffic_bytes / rates[level]["copy_bytes_per_second"]
        seconds[f"traffic at the rate of {'memory' if level == 'memory' else level}"] = copies
    return seconds
