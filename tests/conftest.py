from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread_per_worker():
    """Two pytest workers share two cores; more threads only spin."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def recipes() -> list[Path]:
    """Every recipe that ships with the project."""
    return sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))
