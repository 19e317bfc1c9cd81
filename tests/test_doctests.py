"""The examples in the docstrings do what they say."""

import doctest
import pkgutil
from importlib import import_module

import pytest

import bluesky_cmf

MODULES = sorted(
    found.name
    for found in pkgutil.walk_packages(bluesky_cmf.__path__, f"{bluesky_cmf.__name__}.")
    if not found.name.endswith("__main__")
)


@pytest.mark.parametrize("name", ["bluesky_cmf", *MODULES])
def test_the_examples_of_a_module_give_what_they_show(name: str) -> None:
    assert doctest.testmod(import_module(name)).failed == 0


@pytest.mark.parametrize("name", ["documents.schema", "nmf.streaming", "phases", "preprocess"])
def test_the_modules_that_have_examples_run_them(name: str) -> None:
    assert doctest.testmod(import_module(f"bluesky_cmf.{name}")).attempted > 0
