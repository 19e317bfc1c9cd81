"""Whatever documents come: nothing is raised, every pattern is accounted for, in order."""

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from tests.attack import hold, streams


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """What is wrong with each document is logged: here that is most of them."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(streams())
def test_every_pattern_is_accounted_for_in_the_callers_thread(stream: Any) -> None:
    hold(*stream, background=False)


@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(streams())
def test_every_pattern_is_accounted_for_in_the_background(stream: Any) -> None:
    hold(*stream, background=True)
