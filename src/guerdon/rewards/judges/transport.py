"""One exchange with an HTTP server that may be slow, busy, broken or gone: try again after what may pass."""

from __future__ import annotations

import asyncio
import email.utils
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from guerdon.errors import RecipeError
from guerdon.rewards.judges.questions import JudgeError

if TYPE_CHECKING:
    import httpx

# What a server may answer differently soon: time-out, conflict, too early, too many requests, and its own errors.
PASSING = frozenset({408, 409, 425, 429})
HINTS = {
    400: "compare 'sampling' and 'structured' with what the server takes",
    401: "set the environment variable named in 'api_key_env' to a valid key",
    403: "the key may not use this model",
    404: "check 'base_url' and 'model'",
    422: "compare 'sampling' and 'structured' with what the server takes",
}


class _Passing(Exception):
    """A failure that may pass; ``wait`` is how long the server asks to wait, in seconds."""

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


@dataclass(frozen=True)
class Transport:
    """Posts JSON to one address.

    Attributes:
        client: an ``httpx.AsyncClient``.
        url: where to post.
        key_env: environment variable that holds the key; None sends none. The value is read at each request and kept
            nowhere.
        timeout: seconds for one request, from connecting to the last byte.
        retries: how often a request is repeated.
        backoff: seconds before the first repetition; doubled each time, and varied by up to a half.
        max_wait: longest wait, in seconds; a server that asks for a longer one has failed.
        accept: whether a JSON object is an answer; one that is not is a failure that may pass.
        count: called with the numbers of ``calls`` and ``retries`` as they happen.
    """

    client: httpx.AsyncClient
    url: str
    key_env: str | None
    timeout: float
    retries: int
    backoff: float
    max_wait: float
    accept: Callable[[dict[str, Any]], bool]
    count: Callable[..., None]

    async def post(self, body: Any, *, seed: str) -> dict[str, Any]:
        """Post ``body`` until there is an answer; ``seed`` decides how the waits vary.

        Raises:
            JudgeError: naming the last failure, when it won't pass or the repetitions are used up.
        """
        chance = random.Random(seed)
        attempt = 0
        while True:
            try:
                return await self._once(body)
            except _Passing as failure:
                message, wait = str(failure), failure.wait
            if attempt == self.retries:
                raise JudgeError(f"{message}; tried {attempt + 1} times")
            if wait is not None and wait > self.max_wait:
                raise JudgeError(f"{message}; the server asks to wait {wait:g} s, more than max_wait {self.max_wait:g}")
            if wait is None:
                wait = min(self.backoff * 2**attempt * (0.5 + chance.random()), self.max_wait)
            attempt += 1
            self.count(retries=1)
            await asyncio.sleep(wait)

    async def _once(self, body: Any) -> dict[str, Any]:
        self.count(calls=1)
        response, failure = await self._send(body)
        if response is None:
            raise _Passing(self.scrub(failure))
        status = response.status_code
        if status in PASSING or status >= 500:
            raise _Passing(self._complaint(response), _retry_after(response.headers.get("retry-after")))
        if status != 200:
            hint = f"; {HINTS[status]}" if status in HINTS else ""
            raise JudgeError(self._complaint(response) + hint)
        try:
            payload = response.json()
        except (ValueError, RecursionError):
            payload = None
        if not isinstance(payload, dict):
            kind = response.headers.get("content-type", "nothing")
            raise _Passing(self.scrub(f"{self.url} sent no JSON object but {kind}: {_start(response.text)}"))
        if not self.accept(payload):
            raise _Passing(self.scrub(f"{self.url} sent no answer of the form wanted: {_start(response.text)}"))
        return payload

    async def _send(self, body: Any) -> tuple[httpx.Response | None, str]:
        """The response, or what went wrong; an exception of httpx holds the request with its key, so none leaves."""
        import httpx

        try:
            async with asyncio.timeout(self.timeout):
                return await self.client.post(self.url, json=body, headers=self._headers()), ""
        except (TimeoutError, httpx.TimeoutException):
            return None, f"{self.url} gave no whole answer within {self.timeout:g} s"
        except httpx.HTTPError as error:
            return None, f"{self.url}: {type(error).__name__}: {error}"

    def _headers(self) -> dict[str, str]:
        return {} if self.key_env is None else {"Authorization": f"Bearer {read_key(self.key_env)}"}

    def _complaint(self, response: httpx.Response) -> str:
        return self.scrub(f"{self.url} answered {response.status_code}: {_start(response.text)}")

    def scrub(self, text: str) -> str:
        """The text without the key, should a server repeat it."""
        key = "" if self.key_env is None else os.environ.get(self.key_env, "").strip()
        return text.replace(key, "[key]") if key else text


def read_key(name: str) -> str:
    """The key in an environment variable, without white space around it.

    Raises:
        RecipeError: when it is unset or empty, or holds what no HTTP header can; the value is never shown.
    """
    key = os.environ.get(name, "").strip()
    if not key:
        raise RecipeError(
            f"judge 'openai' reads its key from the environment variable {name}, which is not set; export it, or set "
            "'api_key_env: null' for a server that needs none"
        )
    if not all(33 <= ord(letter) <= 126 for letter in key):
        raise RecipeError(f"the environment variable {name} holds white space or letters that no key has; set it anew")
    return key


def _retry_after(value: str | None) -> float | None:
    """Seconds to wait by a Retry-After header, which holds seconds or a date."""
    if value is None:
        return None
    try:
        return max(float(value), 0.0)
    except ValueError:
        pass
    try:
        return max(email.utils.parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    except ValueError:
        return None


def _start(text: str) -> str:
    """The first words of a response, in one line."""
    return repr(" ".join(text.split())[:200])
