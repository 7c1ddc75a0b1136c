import re
import signal
import subprocess
import sys
import time
import urllib.request

import pytest
from typer.testing import CliRunner

from guerdon.cli.main import app
from guerdon.training.folder import RunFolder


@pytest.fixture
def served(monkeypatch):
    """What the command asks of the server, which is not started."""
    calls = []
    monkeypatch.setattr("guerdon.monitor.live.server.serve", lambda *args, **options: calls.append((args, options)))
    return calls


def call(*arguments):
    result = CliRunner().invoke(app, ["view", *arguments])
    return result.exit_code, result.stdout, result.stderr


def test_the_command_hands_its_options_to_the_server(served):
    assert call()[0] == 0
    assert call("elsewhere", "--host", "0.0.0.0", "--port", "0", "--no-token", "--open")[0] == 0
    (((usual,), defaults), ((given,), options)) = served
    assert (str(usual), str(given)) == ("runs", "elsewhere")
    del defaults["tell"], options["tell"]
    assert defaults == {"host": "127.0.0.1", "port": None, "token": True, "open_browser": False}
    assert options == {"host": "0.0.0.0", "port": 0, "token": False, "open_browser": True}


def test_the_address_goes_to_standard_output_and_the_rest_to_standard_error(monkeypatch):
    monkeypatch.setattr("guerdon.monitor.live.server.serve", lambda *_, tell, **__: tell("http://here/?token=x"))
    code, out, err = call()
    assert (code, out) == (0, "http://here/?token=x\n")
    assert "press Ctrl-C to stop" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "no folder 'nowhere' to look for runs in"),
        ([".", "--host", "0.0.0.0", "--no-token"], "could read every run without a token"),
        ([".", "--host", "nowhere.invalid"], "cannot listen on host 'nowhere.invalid'"),
    ],
)
def test_errors_are_one_plain_line(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(*arguments)
    assert (code, out) == (1, "")
    assert message in err
    assert "Traceback" not in err


def test_a_port_that_is_none_is_wrong_usage():
    assert call("--port", "70000")[0] == 2


def test_a_missing_extra_is_named(monkeypatch):
    for module in [name for name in sys.modules if name.startswith("guerdon.monitor.live")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    code, _, err = call(".")
    assert code == 1
    assert 'view needs the package uvicorn; pip install "guerdon[ui]"' in err


def test_view_serves_until_ctrl_c_even_while_a_page_listens(tmp_path):
    RunFolder.create(tmp_path / "runs" / "a", "name: a\n")
    command = [sys.executable, "-m", "guerdon", "view", str(tmp_path / "runs"), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        address = process.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\?token=[\w-]{32}", address)
        opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        assert "/run/a" in opener.open(address, timeout=20).read().decode()
        stream = opener.open(address.partition("?")[0] + "events", timeout=20)
        assert stream.readline().startswith(b"retry")
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert stream.read().endswith(b"\n\n")
        # Readers don't hold it up; what follows is the end of a Python process.
        assert time.monotonic() - began < 4.0
        errors = process.communicate(timeout=20)[1]
        assert process.returncode == 0
    assert "Traceback" not in errors
