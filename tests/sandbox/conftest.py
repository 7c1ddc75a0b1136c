import warnings
from collections.abc import Iterator

import pytest

from guerdon.sandbox import LEVELS, Sandbox, why_unavailable


def make(level) -> Iterator[Sandbox]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = Sandbox(level)
    yield made
    made.close()


def only(*levels):
    """Levels that work here; the others are skipped with the reason."""
    marks = {
        level: pytest.mark.skipif(bool(why_unavailable(level)), reason=str(why_unavailable(level))) for level in levels
    }
    return [pytest.param(level, marks=mark) for level, mark in marks.items()]


@pytest.fixture(scope="session", params=only(*LEVELS))
def sandbox(request) -> Iterator[Sandbox]:
    """A sandbox of each level that works here."""
    yield from make(request.param)


@pytest.fixture(scope="session", params=only("bubblewrap", "namespaces"))
def isolated(request) -> Iterator[Sandbox]:
    """A sandbox of each isolating level that works here."""
    yield from make(request.param)


@pytest.fixture(scope="session")
def strongest() -> Iterator[Sandbox]:
    """A sandbox of the strongest level that works here."""
    yield from make(None)
