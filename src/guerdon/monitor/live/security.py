"""Who may read the page: a token, the right host name, reading methods only, and headers that keep a page to itself."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import socket
from collections.abc import Iterable, Sequence
from html import escape
from ipaddress import ip_address
from urllib.parse import parse_qsl, quote, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("localhost", "127.0.0.1", "::1")
# Scripts, styles and data come from this server alone, none from within a page; the views draw pictures of samples as
# data addresses.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}


def new_token() -> str:
    """A random token for one start of the server."""
    return secrets.token_urlsafe(24)


def is_loopback(host: str) -> bool:
    """Whether an address can only be reached from this machine."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


class Guard:
    """Lets a request through to the app, or answers it with the reason why not.

    Args:
        token: what a reader must know; None lets everyone read.
        hosts: names under which the server may be addressed, beside numeric addresses unless it listens on loopback
            alone. Another name in the ``Host`` header is that of a page elsewhere which had its name point here.
        loopback: whether the server listens on loopback alone.
    """

    def __init__(self, app: ASGIApp, *, token: str | None, hosts: Iterable[str] = (), loopback: bool = True) -> None:
        self.app = app
        self.token = token
        self.hosts = {*LOOPBACK, *(host.lower() for host in hosts)}
        self.loopback = loopback
        # Cookies don't tell ports apart, so two servers on one machine need names of their own.
        self.cookie = "guerdon-" + hashlib.sha256((token or "").encode()).hexdigest()[:12]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            answer = self._refusal(HTTPConnection(scope))
            await (answer or self.app)(scope, receive, _with_headers(send))
        else:
            await send({"type": "websocket.close", "code": 1008})

    def _refusal(self, request: HTTPConnection) -> Response | None:
        """The answer to a request that must not reach the app, or the way to shed a token in its address."""
        if not self._host_known(request.headers):
            return refusal(
                421,
                "Unknown host name",
                "This address has a host name that the server does not go by. Open the address that guerdon view "
                "printed; to reach it from another machine, forward the port, or start it with --host.",
            )
        if request.scope["method"] not in ("GET", "HEAD"):
            answer = refusal(405, "Only reading", "This server shows runs and changes nothing: GET and HEAD only.")
            answer.headers["allow"] = "GET, HEAD"
            return answer
        if self.token is None:
            return None
        given = request.query_params.getlist("token")
        if given:
            return self._exchange(request) if all(self._matches(x) for x in given) else self._unknown()
        return None if self._matches(request.cookies.get(self.cookie, "")) else self._unknown()

    def _host_known(self, headers: Headers) -> bool:
        hosts = headers.getlist("host")
        host = host_name(hosts[0]) if len(hosts) == 1 else ""
        return host in self.hosts or (not self.loopback and _is_address(host))

    def _matches(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), (self.token or "").encode())

    def _exchange(self, request: HTTPConnection) -> Response:
        """Trade a token in the address, where others could read it, for a cookie."""
        rest = [(k, v) for k, v in parse_qsl(request.url.query, keep_blank_values=True) if k != "token"]
        # One leading slash: two would lead to another host.
        path = "/" + quote(request.scope["path"].lstrip("/\\"))
        answer = RedirectResponse(path + (f"?{urlencode(rest)}" if rest else ""), status_code=303)
        answer.set_cookie(self.cookie, self.token or "", httponly=True, samesite="strict", path="/")
        return answer

    @staticmethod
    def _unknown() -> Response:
        return refusal(
            403,
            "No token",
            "Open the address that guerdon view printed, with its token. The token changes each time it starts. If you "
            "have just followed that address from another page, reload this one.",
        )


def refusal(status: int, title: str, text: str) -> Response:
    """A readable page that needs nothing else."""
    page = "<!doctype html><html lang=en><meta charset=utf-8><meta name=color-scheme content='light dark'>"
    page += f"<title>{escape(title)}</title><h1>{escape(title)}</h1><p>{escape(text)}</p>"
    return HTMLResponse(page, status_code=status)


def host_name(header: str) -> str:
    """The name in a ``Host`` header, without port and brackets, in lower case."""
    if header.startswith("["):
        return header[1:].partition("]")[0].lower()
    return header.rpartition(":")[0].lower() if header.rpartition(":")[2].isdecimal() else header.lower()


def own_names(host: str) -> Sequence[str]:
    """Names of this machine under which a server on ``host`` may be addressed."""
    return LOOPBACK if is_loopback(host) else (host, socket.gethostname(), socket.getfqdn())


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _with_headers(send: Send) -> Send:
    """Add the headers that every answer carries; what is not said to be kept is not stored."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers[name] = value
            headers.setdefault("cache-control", "no-store")
        await send(message)

    return sending
