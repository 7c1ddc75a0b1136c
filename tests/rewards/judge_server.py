"""A chat-completions server on the loopback that misbehaves as it is told to."""

import asyncio
import json
import threading
import time
from collections import deque

ENDLESS = 3600.0


def completion(content, *, usage=(100, 20), finish="stop"):
    """A response in the form of the OpenAI API."""
    message = {"role": "assistant", "content": content}
    payload = {"object": "chat.completion", "choices": [{"index": 0, "message": message, "finish_reason": finish}]}
    if usage is not None:
        payload["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1]}
    return payload


class JudgeServer:
    """Answers every request with ``answer(body)``, unless ``faults`` holds what to do with the next one.

    Args:
        answer: given the body of a request, returns the content of the message or a whole response.

    Attributes:
        faults: what to do with the next requests, in order; names of ``FAULTS``, or (name, argument).
        requests: (headers, body, time) of every request.
        peak: most requests that were being served at once.
        company: how many requests must be under way before any is answered.
    """

    def __init__(self, answer=lambda body: '{"reason": "fine", "score": 7}'):
        self.answer, self.faults, self.requests = answer, deque(), []
        self.company, self.busy, self.peak = 1, 0, 0
        self.delay = 0.0

    def __enter__(self):
        started = threading.Event()
        self._loop = asyncio.new_event_loop()

        async def serve():
            self._enough = asyncio.Event()
            self._server = await asyncio.start_server(self._client, "127.0.0.1", 0)
            self.port = self._server.sockets[0].getsockname()[1]
            started.set()

        def work():
            self._loop.run_until_complete(serve())
            self._loop.run_forever()

        self._thread = threading.Thread(target=work, daemon=True)
        self._thread.start()
        assert started.wait(10)
        return self

    def __exit__(self, *_):
        async def stop():
            self._server.close()
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def bodies(self):
        return [body for _, body, _ in self.requests]

    async def _client(self, reader, writer):
        try:
            while await self._one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _one(self, reader, writer):
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
        body = json.loads(await reader.readexactly(int(headers["content-length"])))
        self.requests.append((headers, body, time.monotonic()))
        if head[0].split()[:2] != ["POST", "/v1/chat/completions"]:
            await respond(writer, b'{"error": "no such page"}', status=404)
            return True
        self.busy += 1
        self.peak = max(self.peak, self.busy)
        if self.busy >= self.company:
            self._enough.set()
        try:
            await self._enough.wait()
            await asyncio.sleep(self.delay)
            fault = self.faults.popleft() if self.faults else "none"
            name, argument = fault if isinstance(fault, tuple) else (fault, None)
            answer = self.answer(body)
            payload = completion(answer) if isinstance(answer, str | None) else answer
            return await FAULTS[name](writer, json.dumps(payload).encode(), argument, headers)
        finally:
            self.busy -= 1


async def respond(writer, body, *, status=200, kind="application/json", length=None, **headers):
    """Write a whole response."""
    extra = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    size = len(body) if length is None else length
    writer.write(f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {size}\r\n{extra}\r\n".encode())
    writer.write(body)
    await writer.drain()


async def none(writer, body, argument, headers):
    await respond(writer, body)
    return True


async def status(writer, body, argument, headers):
    await respond(writer, b'{"error": {"message": "no luck"}}', status=argument)
    return True


async def busy(writer, body, argument, headers):
    await respond(writer, b'{"error": "slow down"}', status=429, retry_after=argument)
    return True


async def moved(writer, body, argument, headers):
    await respond(writer, b"", status=301, location="http://127.0.0.1:9/elsewhere")
    return True


async def malformed(writer, body, argument, headers):
    await respond(writer, body[:-10])
    return True


async def truncated(writer, body, argument, headers):
    await respond(writer, body[:20], length=len(body))
    return False


async def stall(writer, body, argument, headers):
    await asyncio.sleep(ENDLESS)
    return False


async def disconnect(writer, body, argument, headers):
    return False


async def reset(writer, body, argument, headers):
    writer.transport.abort()
    return False


async def garbage(writer, body, argument, headers):
    writer.write(b"\x00\x01 this is no HTTP\r\n\r\n")
    await writer.drain()
    return False


async def wrong_schema(writer, body, argument, headers):
    await respond(writer, json.dumps(argument or {"object": "list", "data": []}).encode())
    return True


async def web_page(writer, body, argument, headers):
    await respond(writer, b"<html>Please log in</html>", kind="text/html")
    return True


async def plain_text(writer, body, argument, headers):
    """The right answer under the wrong name."""
    await respond(writer, body, kind="text/plain; charset=utf-8")
    return True


async def drip(writer, body, argument, headers):
    """One byte every 20 ms: each arrives in time, the whole does not."""
    writer.write(f"HTTP/1.1 200 X\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode())
    for byte in body:
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0.02)
    return True


async def echo(writer, body, argument, headers):
    """Repeats the key, in a response of the status given."""
    said = {"error": {"message": f"Incorrect API key provided: {headers.get('authorization')}"}}
    await respond(writer, json.dumps(said).encode(), status=argument, x_seen=headers.get("authorization"))
    return True


async def echo_verdict(writer, body, argument, headers):
    """A valid verdict whose reason repeats the key."""
    verdict = json.dumps({"reason": f"you sent {headers.get('authorization')}", "score": 7})
    await respond(writer, json.dumps(completion(verdict)).encode())
    return True


FAULTS = {
    fault.__name__: fault
    for fault in (
        *(none, status, busy, moved, malformed, truncated, stall, disconnect, reset, garbage),
        *(wrong_schema, web_page, plain_text, drip, echo, echo_verdict),
    )
}
