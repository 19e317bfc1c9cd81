"""What README and examples show runs as it stands."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"^```python\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def run(script, *arguments, folder):
    environment = {**os.environ, "MPLBACKEND": "agg", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-W", "error::UserWarning", str(script), *map(str, arguments)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_the_readme_runs_from_top_to_bottom(tmp_path):
    script = tmp_path / "readme.py"
    # A folder named my-catalog and the figures are left where the reader works: here, tmp_path.
    script.write_text("\n".join(SNIPPETS) + "\nassert live.error is None\nlive.close()\n")
    done = run(script, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("scan_*.png")) and (tmp_path / "again.png").exists()


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(example, tmp_path, request):
    arguments = []
    if "batio3" in example.stem:
        arguments.append(request.getfixturevalue("batio3").path)
    done = run(example, *arguments, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert done.stderr == ""


def test_the_readme_links_to_what_is_there():
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", README):
        assert (ROOT / target).exists(), target
