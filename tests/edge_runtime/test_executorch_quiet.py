import os
import subprocess
import sys

import pytest

from sparsyfed.edge_runtime.backends.executorch_quiet import without_runtime_lines


def test_only_lines_of_the_runtime_about_itself_are_left_out(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with without_runtime_lines():
        os.write(2, b"[cpuinfo_utils.cpp:71] Reading file\n[method.cpp:7] no memory\n")
        os.write(2, b"[threadpool.cpp:66] Resetting threadpool to 1 threads.\nplain\n")
    assert capfd.readouterr().err == "[method.cpp:7] no memory\nplain\n"


def test_an_error_leaves_standard_error_as_it_was(capfd: pytest.CaptureFixture[str]) -> None:
    @without_runtime_lines()
    def fail() -> None:
        os.write(2, b"before\n")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "before\nafter\n"


@pytest.mark.parametrize(
    "ending", ["import os; os.close(2)", "sys.stderr.close()", "sys.stderr = None"]
)
def test_a_process_without_standard_error_goes_on(ending: str) -> None:
    program = (
        f"import sys; {ending}\n"
        "from sparsyfed.edge_runtime.backends.executorch_quiet import without_runtime_lines\n"
        "with without_runtime_lines():\n    print('inside')"
    )
    result = subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.PIPE)
    assert result.stdout == b"inside\n"
