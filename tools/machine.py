"""The machine that figures were measured on."""

import os
import platform
import re
from pathlib import Path

VECTOR_FLAG = re.compile(r"(sse|ssse|avx|fma|f16c|amx|asimd|neon|sve)")


def describe_machine() -> dict[str, str | int]:
    """Platform, processor, and the number of cores that this process may use."""
    return {
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cpu_count": len(os.sched_getaffinity(0)),
    }


def vector_instructions() -> list[str]:
    """The vector instructions that the processor says it has, by the kernel's names."""
    return sorted(flag for flag in _cpuinfo("flags", "Features").split() if VECTOR_FLAG.match(flag))


def _processor() -> str:
    return _cpuinfo("model name", "Model") or platform.processor() or "unknown processor"


def _cpuinfo(*names: str) -> str:
    """First value in /proc/cpuinfo under one of the names; empty where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return ""
    values = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in values if name.strip() in names), "")
