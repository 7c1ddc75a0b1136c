"""Serves the live page with uvicorn: a port that is free, an address with a token, and an end at Ctrl-C."""

from __future__ import annotations

import errno
import os
import socket
import webbrowser
from collections.abc import Callable
from contextlib import suppress

import uvicorn

from guerdon.errors import GuerdonError
from guerdon.monitor.live.app import create_app
from guerdon.monitor.live.security import is_loopback, new_token, own_names

# The port of `guerdon view` where it is free; else one of the next.
PORT, PORTS = 8321, 50


def serve(
    runs_dir: str | os.PathLike[str],
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    token: bool = True,
    open_browser: bool = False,
    tell: Callable[[str], None] = print,
) -> None:
    """Show the runs below a folder until Ctrl-C.

    Args:
        open_browser: open the address on this machine.
        tell: is given the address.
        host, port, token: see ``Server``.
    """
    server = Server(runs_dir, host=host, port=port, token=token)
    tell(server.address)
    if open_browser:
        webbrowser.open(server.address)
    with suppress(KeyboardInterrupt):  # how it is meant to end
        server.run()


class Server(uvicorn.Server):
    """A server of the live page, listening from the start.

    Args:
        host: address to listen on.
        port: 0 for any that is free; ``PORT`` or the next free one by default.
        token: whether readers need the token in ``address``.

    Attributes:
        address: where a browser finds it.

    Raises:
        GuerdonError: when there is no such folder, the address cannot be listened on, or other machines could read
            without a token.
    """

    def __init__(
        self, runs_dir: str | os.PathLike[str], *, host: str = "127.0.0.1", port: int | None = None, token: bool = True
    ) -> None:
        if not token and not is_loopback(host):
            raise GuerdonError(
                f"host '{host}' can be reached from other machines, which could read every run without a token; leave "
                "out --no-token, or listen on 127.0.0.1"
            )
        secret = new_token() if token else None
        app, self.watcher = create_app(runs_dir, token=secret, hosts=own_names(host), loopback=is_loopback(host))
        self.listener = listening(host, port)
        shown = f"[{host}]" if ":" in host else host
        query = f"?token={secret}" if secret else ""
        self.address = f"http://{shown}:{self.listener.getsockname()[1]}/{query}"
        super().__init__(
            uvicorn.Config(
                app,
                log_level="warning",
                access_log=False,  # it would hold the token
                lifespan="off",
                server_header=False,
                ws="none",
                timeout_graceful_shutdown=5,
            )
        )

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until Ctrl-C."""
        with self.listener:
            super().run(sockets or [self.listener])

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the event streams, which would wait for their readers to leave, then what is left."""
        self.watcher.close()
        await super().shutdown(sockets)


def listening(host: str, port: int | None = None) -> socket.socket:
    """A socket that listens on ``host``.

    Args:
        port: 0 for any that is free; None for ``PORT`` or the next free one.

    Raises:
        GuerdonError: when the address is unknown or not of this machine, or the port is taken.
    """
    tried = range(PORT, PORT + PORTS) if port is None else [port]
    try:
        family, *_, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError as error:
        why = error.strerror or error
        raise GuerdonError(f"cannot listen on host '{host}': {why}; give an address of this machine") from error
    for number in tried:
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((address[0], number))
            listener.listen(128)
        except (OSError, OverflowError) as error:
            listener.close()
            if isinstance(error, OSError) and error.errno == errno.EADDRINUSE and port is None:
                continue
            why = getattr(error, "strerror", None) or error
            raise GuerdonError(f"cannot listen on {host}:{number}: {why}; give another --port, or 0 for any") from error
        listener.set_inheritable(True)
        return listener
    raise GuerdonError(f"ports {PORT} to {PORT + PORTS - 1} of {host} are all taken; give another --port, or 0 for any")
