import gc
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from guerdon.training import loop


@pytest.fixture(autouse=True, scope="session")
def _one_thread_per_worker():
    """Two pytest workers share two cores; more threads only spin."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _runs_leave_garbage_to_the_collector():
    """A run walks all objects once before it sets them aside, which takes a good part of one of two steps."""
    loop.gc = SimpleNamespace(collect=lambda: None, freeze=gc.freeze, unfreeze=gc.unfreeze)


@pytest.fixture(scope="session")
def recipes() -> list[Path]:
    """Every recipe that ships with the project."""
    return sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))
