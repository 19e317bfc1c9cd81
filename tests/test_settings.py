"""Settings files: what they become, what they refuse, and how they are written back."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bluesky_cmf import open_catalog
from bluesky_cmf.errors import InputError, PatternFileError, SettingsError
from bluesky_cmf.preprocess import Preprocess
from bluesky_cmf.profiles import Width
from bluesky_cmf.settings import PhaseSettings, Settings
from tests.streams import mixtures, run_documents
from tests.structures import STRUCTURES

FULL = """
pattern: chi_I
x: chi_Q
independent: temperature
n_components: 5
phases:
  - &crystal
    cif: silicon.cif
    wavelength: 0.1671
    width: 3e-2
    displacement: false
  - <<: *crystal
    name: silicon again
    width: {w: 0.0004, eta: 0.2}
  - cif: silicon.cif
    name: on q
    axis: q
    width: [0, 0, 1e-4]
  - file: below/background.xy
preprocess:
  roi: [2, 10]
  normalize: max
loss: kullback-leibler
seed: 4
scope: session
device: cpu
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "background.xy").write_text("1 2\n20 2\n")
    (tmp_path / "silicon.cif").write_text(STRUCTURES["silicon"])
    (tmp_path / "settings.yaml").write_text(FULL)
    return tmp_path


def test_a_file_becomes_the_objects_with_paths_relative_to_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    settings = Settings.load(folder / "settings.yaml")
    phases = settings.known_phases()
    assert [phase.name for phase in phases] == ["silicon", "silicon again", "on q", "background"]
    assert [phase.origin for phase in phases][::3] == [
        "CIF silicon.cif, atoms at rest",
        "file background.xy",
    ]
    powders = [phase.powder for phase in phases[:3]]
    assert [p and p.width for p in powders] == [
        Width.of(0.03),
        Width(0.0, 0.0, 0.0004, 0.2),
        Width.of((0, 0, 1e-4)),
    ]
    assert [p and p.axis for p in powders] == ["two_theta", "two_theta", "q"]
    assert settings.preprocess == Preprocess(roi=(2.0, 10.0), normalize="max")


def test_the_callback_is_made_of_them_and_arguments_win(folder: Path) -> None:
    x, H, patterns = mixtures()
    (folder / "one.yaml").write_text(
        "pattern: chi_I\nx: chi_Q\nn_components: 3\nindependent: temperature\nseed: 7\n"
        "preprocess: {roi: [1.5, 4.0]}\nphases: [{file: one.xy}, {file: two.xy}]\n"
    )
    for name, h in zip(("one", "two"), H, strict=True):
        np.savetxt(folder / f"{name}.xy", np.column_stack([x, h]))
    settings = Settings.load(folder / "one.yaml")
    live = settings.live_nmf(background=False, n_components=2)
    documents: list[tuple[str, Any]] = []
    live.subscribe(lambda name, doc: documents.append((name, doc)))
    for name, doc in run_documents(patterns, x=x):
        live(name, doc)
    assert live.error is None and live.result is not None
    assert live.result.names == ("one", "two")
    cmf = documents[0][1]["cmf"]
    assert (cmf["seed"], cmf["preprocess"]["roi"]) == (7, [1.5, 4.0])
    assert documents[0][1]["hints"]["dimensions"] == [[["temperature"], "primary"]]


def test_what_is_written_is_read_back_as_the_same_settings(folder: Path) -> None:
    settings = Settings.load(folder / "settings.yaml")
    settings.dump(folder / "copy.yaml")
    assert Settings.load(folder / "copy.yaml") == settings
    text = (folder / "copy.yaml").read_text()
    assert "cif: silicon.cif" in text and "file: below/background.xy" in text
    assert "stream" not in text, "defaults are left out"
    elsewhere = folder / "below" / "copy.yaml"
    settings.dump(elsewhere)
    assert f"cif: {folder}/silicon.cif" in elsewhere.read_text()
    assert Settings.load(elsewhere) == settings


def test_nothing_is_overwritten_unless_asked(folder: Path) -> None:
    settings = Settings(pattern="chi_I")
    with pytest.raises(SettingsError, match=r"settings\.yaml: is there already"):
        settings.dump(folder / "settings.yaml")
    assert (folder / "settings.yaml").read_text() == FULL
    settings.dump(folder / "settings.yaml", overwrite=True)
    assert Settings.load(folder / "settings.yaml") == settings
    with pytest.raises(SettingsError, match="cannot be written"):
        settings.dump(folder / "nowhere" / "a.yaml")


def test_an_empty_file_holds_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("# nothing yet\n")
    assert Settings.load(tmp_path / "a.yaml") == Settings()


def test_a_phase_of_any_origin_may_have_a_strain(folder: Path) -> None:
    (folder / "a.yaml").write_text(
        "phases:\n  - {file: below/background.xy, strain: [-0.01, 0.02], axis: q}\n"
        "  - {cif: silicon.cif, wavelength: 0.1671, strain: [0, 0.01]}\n"
    )
    settings = Settings.load(folder / "a.yaml")
    one, two = settings.known_phases()
    assert (one.strain, one.axis, two.strain) == ((-0.01, 0.02), "q", (0.0, 0.01))
    settings.dump(folder / "b.yaml")
    assert Settings.load(folder / "b.yaml") == settings
    with pytest.raises(SettingsError, match=r"phases\[0\]\.strain"):
        settings.with_values({"phases.0.strain": [0.1]})


def test_every_step_of_preprocess_is_a_key_and_is_checked_by_itself(tmp_path: Path) -> None:
    settings = Settings(preprocess={"negative": "offset", "roi": [1, 2]})
    assert settings.preprocess == Preprocess(negative="offset", roi=(1, 2))
    assert Settings(preprocess=settings.preprocess) == settings


# --- what is refused


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (
            "normalize: max",
            "normalise: max",
            r"preprocess\.normalise: no such key; did you mean 'normalize'\? keys are roi",
        ),
        ("seed: 4", "sead: 4", r"sead: no such key; did you mean 'seed'\? keys are pat"),
        (
            "    wavelength: 0.1671",
            "    wavelenght: 0.1671",
            r"phases\[0\]\.wavelenght: no such key; did you mean 'wavelength'\?",
        ),
        ("normalize: max", "normalize: sum", r"preprocess\.normalize: expected 'max'"),
        ("[2, 10]", "[10, 2]", r"preprocess\.roi: expected numbers \(first, last\)"),
        ("seed: 4", "seed: four", "seed: expected a whole number, got 'four'"),
        ("seed: 4", "seed: -1", "seed: expected greater than or equal to 0, got -1"),
        ("seed: 4", "seed: true", "seed: expected a whole number, got True"),
        ("0.1671", "'0.1671'", r"phases\[0\]\.wavelength: expected a number, got '0\.16"),
        ("0.1671", "0", r"phases\[0\]\.wavelength: expected angstrom, from 0\.05 to 5"),
        ("0.1671", "0.01671", "wavelength: expected angstrom, from 0.05 to 5, got 0.01671"),
        ("axis: q", "axis: Q", r"phases\[2\]\.axis: expected 'two_theta' or 'q', got 'Q'"),
        ("width: 3e-2", "width: wide", r"phases\[0\]\.width: expected a positive number"),
        ("width: {w: 0.0004", "width: {ww: 0.0004", r"width: expected keys u, v, w, eta, got 'ww'"),
        (
            "  - file:",
            "  - signed: true\n    width: 1\n    file:",
            r"width: expected only with cif",
        ),
        ("  - file:", "  - run: abcdef\n    file:", r"phases\[3\]: expected one of file"),
        (
            "  - file: below/background.xy",
            "  - name: a",
            "expected one of file, cif, run, got none",
        ),
        ("  - file: below/background.xy", "  - run: abcdef", "catalog: expected a value beside"),
        ("  - file: below/background.xy", "  - run: 123456", "run: expected text \\(in quotes"),
        (
            "  - file: below/background.xy",
            "  - 12",
            r"phases\[3\]: expected keys and values, got 12",
        ),
        ("scope: session", "scope: all", "scope: expected 'run' or 'session', got 'all'"),
        ("loss: kull", "loss: cull", "loss: expected one of"),
        ("n_components: 5", "n_components: 0", "n_components: expected greater than"),
        ("device: cpu", "device: cpu\nseed: 5", "seed comes twice; keep one of them"),
        ("device: cpu", "integrator: {mask: a.npy}", "integrator.poni: expected a value, but it"),
        ("[2, 10]", "[2, 10", "cannot be read as YAML"),
        (FULL, "- a\n- b\n", "expected lines 'key: value', got"),
        (FULL, "12: a\n", "expected lines 'key: value', got"),
    ],
)
def test_what_cannot_be_is_refused_with_file_line_and_key(
    folder: Path, before: str, after: str, message: str
) -> None:
    assert before in FULL
    path = folder / "wrong.yaml"
    path.write_text(FULL.replace(before, after, 1))
    with pytest.raises(SettingsError, match=message) as caught:
        Settings.load(path)
    told = str(caught.value)
    assert told.startswith(f"{path}: ")
    # The line that is named is the one that the last of the keys stands in.
    found = re.search(r": line (\d+): (?:[\w.]*\.)?(\w+)(\[\d\])?(?:: | comes)", told)
    if found and not found[3]:
        line = path.read_text().splitlines()[int(found[1]) - 1]
        assert line.lstrip().startswith((found[2], "integrator"))
    assert found or "seed" not in after


def test_what_is_wrong_with_a_phase_is_told_with_its_place(folder: Path) -> None:
    for before, after, message in [
        ("background.xy", "missing.xy", r"phases\[3\]: .*missing\.xy: no such file"),
        ("    wavelength: 0.1671\n", "", r"phases\[0\]: wavelength: expected the wave"),
    ]:
        (folder / "wrong.yaml").write_text(FULL.replace(before, after, 1))
        with pytest.raises((PatternFileError, InputError), match=message):
            Settings.load(folder / "wrong.yaml").known_phases()


def test_a_file_that_is_not_there_or_not_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"a\.yaml: no such file"):
        Settings.load(tmp_path / "a.yaml")
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingsError, match=r"a\.yaml: cannot be read"):
        Settings.load(tmp_path / "a.yaml")


def test_keywords_are_checked_as_a_file_is() -> None:
    with pytest.raises(SettingsError, match="seeds: no such key; did you mean 'seed'"):
        Settings(seeds=3)
    with pytest.raises(SettingsError, match="pattern: expected the data key of the patterns"):
        Settings().live_nmf()
    with pytest.raises(ValueError, match="expected one of file, cif, run"):
        PhaseSettings(name="a")


# --- other values


def test_other_values_are_set_by_keys_with_dots_and_are_not_told_of_the_file(folder: Path) -> None:
    settings = Settings.load(folder / "settings.yaml")
    other = settings.with_values({"preprocess.negative": "clip", "phases.2.width": 0.2, "seed": 5})
    assert other.preprocess == Preprocess(roi=(2.0, 10.0), normalize="max", negative="clip")
    assert (other.phases[2].width, other.seed) == (0.2, 5)
    assert (settings.seed, settings.phases[2].width) == (4, [0, 0, 1e-4])
    for changes, message in [
        ({"preprocess.roi": (5, 1)}, r"^preprocess\.roi: expected numbers"),
        ({"preprocess.rio": (5, 1)}, r"^preprocess\.rio: no such key; did you mean 'roi'"),
        ({"phases.7.width": 1}, r"^phases\[7\]: expected one of 4 entries, counted from 0"),
        ({"phases.0.file": "a.xy"}, r"line 7: phases\[0\]: expected one of file, cif, run"),
    ]:
        with pytest.raises(SettingsError, match=message):
            settings.with_values(changes)


# --- a phase from a stored run


def test_a_phase_may_come_from_a_run_in_a_folder_beside_the_file(tmp_path: Path) -> None:
    x, H, _ = mixtures()
    documents = run_documents(H[:1], x=x)
    with open_catalog(tmp_path / "catalog") as catalog:
        writer = catalog.writer()
        for name, doc in documents:
            writer(name, doc)
        writer.flush()
        uid = documents[0][1]["uid"]
        (tmp_path / "a.yaml").write_text(
            f"phases: [{{run: '{uid}', catalog: catalog, pattern: chi_I, x: chi_Q, name: one}}]"
        )
        (phase,) = Settings.load(tmp_path / "a.yaml").known_phases()
    assert phase.name == "one"
    assert np.array_equal(phase.y, H[0])
