import pytest
from judge_server import JudgeServer


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A judge's server that behaves, until told otherwise; without the user's caches and proxies."""
    monkeypatch.setenv("GUERDON_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with JudgeServer() as running:
        yield running
