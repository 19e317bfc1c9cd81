"""The startup files give a scientist what a session needs, however they are loaded."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROFILE = Path(__file__).resolve().parents[1] / "profile_startup"

#: What is tried in the loaded session.
SESSION = """
RE(heating_ramp(number=3))
assert live.wait(60) and live.error is None
assert live.result.n_patterns == 3
assert live.result.names[:2] == ("tetragonal", "cubic")
assert plot.draws > 0 and plot.error is None
assert writer.flush(60)
assert len(catalog.uids()) == 2
assert det.name == "det" and temperature.position == 595.0
print("session is fine")
"""

#: As bluesky-queueserver loads startup files.
PLAIN = """
import pathlib, sys
space = {"__name__": "__main__"}
class Dummy:
    user_ns = space
space["get_ipython"] = Dummy
for path in sorted(pathlib.Path(sys.argv[1], "startup").glob("*.py"), key=str):
    exec(compile(path.read_text(), str(path), "exec"), space)
exec(sys.argv[2], space)
"""


def session(command: list[str], folder: Path) -> str:
    hidden = ("DISPLAY", "WAYLAND_DISPLAY", "MPLBACKEND", "IPYTHONDIR")
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    environment |= {"BLUESKY_CMF_CATALOG": str(folder / "runs"), "HOME": str(folder)}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    """A copy: IPython keeps its history in the profile's folder."""
    startup = tmp_path / "profile" / "startup"
    startup.mkdir(parents=True)
    for path in (PROFILE / "startup").glob("*.py"):
        (startup / path.name).write_text(path.read_text())
    return startup.parent


def test_ipython_loads_the_profile_and_a_scan_is_decomposed(profile: Path, tmp_path: Path) -> None:
    options = [f"--profile-dir={profile}", "--no-banner", "--colors=NoColor"]
    output = session([sys.executable, "-m", "IPython", *options, "-c", SESSION], tmp_path)
    assert "session is fine" in output


def test_files_run_as_plain_python_in_string_order_and_a_scan_is_decomposed(
    tmp_path: Path,
) -> None:
    output = session([sys.executable, "-c", PLAIN, str(PROFILE), SESSION], tmp_path)
    assert "session is fine" in output
    assert {path.name for path in tmp_path.iterdir()} <= {"runs", ".cache", ".config"}


def test_startup_files_are_numbered_so_that_string_order_is_their_order() -> None:
    names = sorted(path.name for path in (PROFILE / "startup").glob("*.py"))
    assert names
    assert all(name[:2].isdigit() and name[2] == "-" for name in names)
