import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sparsyfed.edge_runtime.errors import BackendError
from sparsyfed.tools.child_process import spawn
from sparsyfed.tools.device_processes import DeviceCommand, DeviceProcesses


def alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text(encoding="ascii")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state.rpartition(")")[2].split()[0] != "Z"


def wait_until_gone(process: int, seconds: float = 10.0) -> bool:
    until = time.monotonic() + seconds
    while alive(process) and time.monotonic() < until:
        time.sleep(0.02)
    return not alive(process)


def test_a_device_that_cannot_start_is_named_with_its_complaint(tmp_path: Path) -> None:
    arguments = ["--id", "a", "--broker", "localhost", "--data", "nowhere", "--directory", "d"]
    command = DeviceCommand(arguments, tmp_path / "logs" / "a.log")
    with (
        DeviceProcesses({"a": command}) as fleet,
        pytest.raises(BackendError, match=r"a ended with status 2: sparsyfed device: .*nowhere"),
    ):
        fleet.wait(30.0)


def test_devices_end_with_the_block(tmp_path: Path) -> None:
    import numpy as np

    np.save(tmp_path / "x.npy", np.zeros((2, 3), np.float32))
    np.save(tmp_path / "y.npy", np.zeros(2, np.int32))
    arguments = ["--id", "a", "--broker", "127.0.0.1:9", "--data", str(tmp_path)]
    arguments += ["--directory", str(tmp_path / "state")]
    log = tmp_path / "a.log"
    with DeviceProcesses({"a": DeviceCommand(arguments, log)}) as fleet:
        until = time.monotonic() + 30
        while "no link" not in log.read_text() and time.monotonic() < until:
            time.sleep(0.05)
        assert fleet.failed() is None
        with pytest.raises(BackendError, match="a still runs"):
            fleet.wait(0.01)
        processes = [process.pid for process in fleet._processes.values()]
    assert not any(map(alive, processes))


def test_a_child_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    code = (
        "import os, sys, time\n"
        "from sparsyfed.tools.child_process import spawn\n"
        f"log = {str(tmp_path / 'log')!r}\n"
        "program = 'import time; print(1, flush=True); time.sleep(60)'\n"
        "child = spawn([sys.executable, '-c', program], open(log, 'wb'))\n"
        "while os.path.getsize(log) == 0:\n"  # until then it may not have asked for the signal
        "    time.sleep(0.01)\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert alive(child)
    parent.kill()
    parent.communicate()
    assert wait_until_gone(child)


def test_an_interrupt_of_the_owner_does_not_reach_the_child(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log:
        child = spawn([sys.executable, "-c", "import time; time.sleep(60)"], log)
    try:
        assert os.getpgid(child.pid) != os.getpgid(0)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
