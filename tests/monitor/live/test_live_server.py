import http.client
import json
import re
import signal
import socket
import time

import pytest
from live_runs import raise_alarm, served, until, write_run

from guerdon.errors import GuerdonError
from guerdon.monitor.live import server as server_module
from guerdon.monitor.live.server import Server, listening


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    runs = tmp_path_factory.mktemp("served") / "runs"
    write_run(runs / "first")
    write_run(runs.parent / "outside", task="the-secret")
    (runs / "linked").symlink_to(runs.parent / "outside")
    return runs


@pytest.fixture(scope="module")
def server(runs):
    with served(runs, token=False) as server:
        yield server


def ask(server, path, method="GET", **headers):
    """A request as it is written here: no client tidies the path."""
    host, port = server.listener.getsockname()
    connection = http.client.HTTPConnection(host, port, timeout=10)
    connection.putrequest(method, path, skip_host="host" in headers, skip_accept_encoding=True)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    return answer, answer.read().decode()


# Addresses ----------------------------------------------------------------------------------------------------

PATHS = [
    "/run/..",
    "/run/../../etc/passwd",
    "/run/%2e%2e",
    "/run/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "/run/..%2foutside",
    "/run/first%2f..%2f..%2foutside",
    "/run//etc/passwd",
    "/run/%2Fetc%2Fpasswd",
    "/run/first%00",
    "/run/first/part/../../../etc/passwd",
    "/run/first%5c..%5c..%5coutside",
    "/run/%252e%252e%252foutside",
    "/run/%ff%fe",
    "/run/" + "a" * 5000,
    "/static/../store.py",
    "/static/%2e%2e%2fstore.py",
    "/static/%2e%2e/%2e%2e/server.py",
    "/static//etc/passwd",
    "/static/view.js%00",
    "/part/rows/../../../etc/passwd",
]


@pytest.mark.parametrize("path", PATHS)
def test_no_path_leads_out_of_the_folder(server, path):
    answer, page = ask(server, path)
    assert answer.status in (400, 404)
    assert not any(text in page for text in ("the-secret", "root:", "import ", "Traceback"))
    assert ask(server, "/run/first")[0].status == 200


def test_a_foreign_host_name_a_post_and_a_wrong_token_are_refused(runs, server):
    assert ask(server, "/", host="evil.example")[0].status == 421
    assert ask(server, "/", method="POST")[0].status == 405
    with served(runs) as guarded:
        assert ask(guarded, "/")[0].status == 403
        assert ask(guarded, "/?token=wrong")[0].status == 403
        assert ask(guarded, "/?" + guarded.address.partition("?")[2])[0].status == 303


# Events -------------------------------------------------------------------------------------------------------


def stream(server, path):
    host, port = server.listener.getsockname()
    connection = http.client.HTTPConnection(host, port, timeout=10)
    connection.request("GET", path)
    answer = connection.getresponse()
    assert answer.headers["content-type"].startswith("text/event-stream")
    return connection, answer


def message(answer):
    """The next message; None at the end of the stream."""
    while line := answer.readline():
        if line.startswith(b"data: "):
            return json.loads(line[6:])
    return None


def test_a_reader_hears_what_changed_in_its_run(runs, server):
    folder = write_run(runs / "followed", end=None)
    connection, answer = stream(server, "/events?run=followed")
    everything = message(answer)
    assert set(everything) == {"standing", "header", "alarms", "faults", "curves", "recipe", "microscope"}
    raise_alarm(folder, 3)
    assert set(message(answer)) == {"standing", "header", "alarms", "curves"}
    connection.close()


def test_a_reader_of_the_list_hears_of_runs_that_come(runs, server):
    connection, answer = stream(server, "/events")
    assert {"list", "first"} <= set(message(answer))
    write_run(runs / "latecomer")
    assert set(message(answer)) == {"list", "latecomer"}
    connection.close()


def test_readers_that_leave_are_forgotten(server):
    connections = [stream(server, "/events")[0] for _ in range(5)]
    until(lambda: server.watcher.watchers == 5)
    for connection in connections:
        connection.sock.close()
        connection.close()
    until(lambda: server.watcher.watchers == 0)
    assert server.watcher.watchers == 0


def test_the_server_ends_at_once_though_streams_are_open(runs):
    with served(runs, token=False) as server:
        answers = [stream(server, "/events")[1] for _ in range(3)]
        assert all(message(answer) for answer in answers)
        began = time.monotonic()
        server.handle_exit(signal.SIGINT, None)
        ends = [message(answer) for answer in answers]
        assert ends == [None] * 3
    # A loaded machine takes a while; waiting for readers would take the five seconds that the server gives them.
    assert time.monotonic() - began < 4.0


def test_the_headers_of_the_stream_can_be_had_alone(server):
    answer, body = ask(server, "/events", method="HEAD")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert body == ""
    until(lambda: server.watcher.watchers == 0)


# Where it listens ---------------------------------------------------------------------------------------------


def test_the_address_holds_a_token_unless_told_otherwise(runs):
    for options, form in (
        ({}, r"http://127\.0\.0\.1:\d+/\?token=.{32}"),
        ({"token": False}, r"http://127\.0\.0\.1:\d+/"),
    ):
        server = Server(runs, port=0, **options)
        server.listener.close()
        assert re.fullmatch(form, server.address)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "trainer.example"])
def test_other_machines_need_a_token(runs, host):
    with pytest.raises(GuerdonError, match="could read every run without a token"):
        Server(runs, host=host, port=0, token=False)


def test_a_taken_port_is_passed_over_unless_it_was_asked_for(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(GuerdonError, match=f"cannot listen on 127.0.0.1:{port}: .*give another --port"):
            listening("127.0.0.1", port)
        monkeypatch.setattr(server_module, "PORT", port)
        with listening("127.0.0.1") as other:
            assert port < other.getsockname()[1] < port + server_module.PORTS
        monkeypatch.setattr(server_module, "PORTS", 1)
        with pytest.raises(GuerdonError, match="are all taken"):
            listening("127.0.0.1")


def test_an_unknown_host_is_refused():
    with pytest.raises(GuerdonError, match="cannot listen on host 'nowhere.invalid'"):
        listening("nowhere.invalid", 0)
    with pytest.raises(GuerdonError, match="cannot listen on 192.0.2.1:0"):
        listening("192.0.2.1", 0)


def test_ipv6_addresses_are_written_in_brackets(runs):
    try:
        server = Server(runs, host="::1", port=0)
    except GuerdonError:
        pytest.skip("this machine has no IPv6")
    server.listener.close()
    assert server.address.startswith("http://[::1]:")
