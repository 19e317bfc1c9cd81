"""Kernels for CUDA where there is no CUDA: what they compute, and whether they compile."""

import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="triton is not installed")


CHECKS = [
    "a_row_that_waits_is_there_for_whoever_reads",
    "coordinate_descent",
    "products",
    "rows_settled_in_one_launch",
    "rows_solved_on_a_device",
    "sweeps_decided_on_the_device",
    "tables_of_an_event",
]


@pytest.mark.parametrize("check", CHECKS)
def test_a_kernel_is_what_its_twin_is(check: str) -> None:
    """Run by triton's interpreter, which needs no device."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.interpreted", check], capture_output=True, text=True
    )

    assert run.stdout.strip() == "equal", run.stderr


def test_kernels_compile_as_they_are_called() -> None:
    """An interpreter lets pass what a compiler does not: types that change in a loop, a branch."""
    run = subprocess.run([sys.executable, "-m", "tests.compiled"], capture_output=True, text=True)

    assert run.returncode == 0, run.stderr
    names = {line.split()[0] for line in run.stdout.splitlines()}
    assert names == {
        *("_descend_all", "_put", "_settle", "_take", "_times", "_transposed_times"),
        *("column_products", "components", "row_products", "weights"),
    }


def test_all_checks_are_run() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "tests.interpreted"], capture_output=True, text=True
    )

    assert run.stdout.split() == CHECKS
