import pytest
import torch

from guerdon.monitor import memory
from guerdon.monitor.memory import PeakMemory


@pytest.fixture
def no_accelerator(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_a_peak_is_seen_once(no_accelerator):
    peak = PeakMemory()
    before = peak.look()
    block = torch.ones(64 * 2**18)  # 64 MiB, touched
    del block
    during, after = peak.look(), peak.look()
    assert during > before + 48
    assert after < during - 48


def test_without_the_kernels_mark_it_is_the_peak_of_the_process(no_accelerator, monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "missing")
    first = PeakMemory().look()
    assert first > 10
    block = torch.ones(2**18)
    del block
    assert PeakMemory().look() >= first
