import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from guerdon.monitor.live.security import Guard, host_name, is_loopback, new_token, own_names

TOKEN = "a-token"


async def answer(request):
    return PlainTextResponse(f"{request.url.path}?{request.url.query}")


def client(token=TOKEN, base="http://127.0.0.1:8321", **options):
    app = Starlette(routes=[Route("/{rest:path}", answer, methods=["GET", "POST", "DELETE"])])
    return TestClient(Guard(app, token=token, **options), base_url=base, follow_redirects=False)


# Token --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["/", "/run/a", "/static/view.js", "/events", "/?token=", "/?token=wrong"])
def test_without_the_token_nothing_is_served(address):
    got = client().get(address)
    assert got.status_code == 403
    assert "with its token" in got.text
    assert "set-cookie" not in got.headers
    assert TOKEN not in got.text


def test_the_token_in_the_address_is_traded_for_a_cookie():
    browser = client()
    first = browser.get(f"/run/a%20b?view=rollouts&token={TOKEN}&step=3")
    assert (first.status_code, first.headers["location"]) == (303, "/run/a%20b?view=rollouts&step=3")
    cookie = first.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert "path=/" in cookie
    assert browser.get(first.headers["location"]).text == "/run/a b?view=rollouts&step=3"


@pytest.mark.parametrize("path", ["//elsewhere.example/x", "/\\elsewhere.example", "///elsewhere.example"])
def test_the_redirect_stays_on_this_server(path):
    location = client().get(f"http://127.0.0.1:8321{path}?token={TOKEN}").headers["location"]
    assert location.startswith("/")
    assert not location.startswith(("//", "/\\"))


def test_a_right_token_beside_a_wrong_one_is_not_enough():
    assert client().get(f"/?token={TOKEN}&token=wrong").status_code == 403


@pytest.mark.parametrize("value", ["", "wrong", TOKEN + "x", TOKEN[:-1], "\xe9"])
def test_a_wrong_cookie_is_refused(value):
    name = Guard(answer, token=TOKEN).cookie
    got = client().get("/", headers={b"cookie": f"{name}={value}".encode("latin-1")})
    assert got.status_code == 403


def test_two_servers_on_one_machine_keep_their_cookies_apart():
    assert Guard(answer, token="one").cookie != Guard(answer, token="two").cookie
    assert "one" not in Guard(answer, token="one").cookie


def test_tokens_are_long_and_differ():
    tokens = {new_token() for _ in range(50)}
    assert len(tokens) == 50
    assert min(map(len, tokens)) >= 32


def test_without_a_token_everyone_on_the_machine_may_read():
    assert client(token=None).get("/x").text == "/x?"


# Host names ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1:8321", "localhost:9", "LOCALHOST", "[::1]:8321", "127.0.0.1"])
def test_loopback_goes_by_its_own_names(host):
    assert client(token=None).get("/x", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8321", "127.0.0.1.evil.example", "localhost.evil.example", "", "192.168.1.9"]
)
def test_a_name_that_was_pointed_here_is_refused(host):
    got = client(token=None).get("/x", headers={"host": host})
    assert got.status_code == 421
    assert "/x?" not in got.text


def test_a_server_for_other_machines_goes_by_its_addresses_and_its_names():
    browser = client(token=None, hosts=["trainer"], loopback=False)
    for host, status in {"192.168.1.9:8321": 200, "[fe80::1]": 200, "Trainer": 200, "evil.example": 421}.items():
        assert browser.get("/x", headers={"host": host}).status_code == status


@pytest.mark.parametrize(
    ("header", "name"),
    [("a:1", "a"), ("A", "a"), ("[::1]:80", "::1"), ("[::1]", "::1"), ("a:b", "a:b"), ("::1", ":"), (":80", "")],
)
def test_the_name_in_a_host_header(header, name):
    assert host_name(header) == name


def test_loopback_is_told_from_other_addresses():
    assert all(map(is_loopback, ["localhost", "127.0.0.1", "127.8.9.1", "::1"]))
    assert not any(map(is_loopback, ["0.0.0.0", "::", "192.168.0.1", "trainer", ""]))
    assert "0.0.0.0" in own_names("0.0.0.0")
    assert "0.0.0.0" not in own_names("127.0.0.1")


# Methods and headers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"])
def test_only_reading_is_allowed(method):
    got = client(token=None).request(method, "/x")
    assert (got.status_code, got.headers["allow"]) == (405, "GET, HEAD")


def test_sockets_are_closed():
    browser = client(token=None)
    with pytest.raises(WebSocketDisconnect) as refused, browser.websocket_connect("/x"):
        raise AssertionError("it was opened")
    assert refused.value.code == 1008


@pytest.mark.parametrize(("address", "status"), [("/x", 403), (f"/x?token={TOKEN}", 303)])
def test_every_answer_keeps_to_itself(address, status):
    got = client().get(address)
    assert got.status_code == status
    policy = got.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert "unsafe" not in policy
    assert got.headers["x-content-type-options"] == "nosniff"
    assert got.headers["referrer-policy"] == "no-referrer"
    assert got.headers["cache-control"] == "no-store"
