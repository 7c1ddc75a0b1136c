"""A judge behind an OpenAI-compatible server: OpenAI, vLLM, SGLang, llama.cpp, Ollama and many more."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from guerdon.errors import RecipeError
from guerdon.rewards.judges.base import Backend
from guerdon.rewards.judges.cache import AnswerCache, default_cache
from guerdon.rewards.judges.questions import (
    Answer,
    JudgeError,
    Question,
    UnreadableVerdict,
    Verdict,
    read_verdict,
)
from guerdon.rewards.judges.transport import Transport, read_key

Result = TypeVar("Result")

_OURS = frozenset({"model", "messages", "response_format", "stream", "n"})


class OpenAIJudge(Backend):
    """Asks a model behind ``{base_url}/chat/completions`` for verdicts in JSON.

    The questions of a batch are asked together, equal ones once. An answer that is no verdict goes back to the model
    with what is wrong about it. Time-outs, broken connections, broken responses and statuses 408, 409, 425, 429 and 5xx
    are tried again.

    Attributes:
        model: name of the model on the server.
        base_url: address of the server, up to and with its version.
        api_key_env: name of the environment variable that holds the key; null for a server that needs none.
        structured: how the form of the verdict is asked for besides in words: by its JSON schema, as any JSON object,
            or not at all, for servers that can't.
        sampling: further properties of the request, such as temperature, max_tokens, max_completion_tokens, seed.
        explain: let the model reason in a sentence or two before its verdict.
        concurrency: most requests under way at once.
        timeout: seconds for one request.
        deadline: seconds for one batch; what is unanswered then has failed. Null waits as long as it takes.
        retries: how often a request is repeated.
        backoff: seconds before the first repetition, doubled each time.
        max_wait: longest wait before a repetition, in seconds.
        reread: how often a model is told that its answer was no verdict, and asked again.
        cache: file of earlier answers; true is ``judge.sqlite`` in ``$GUERDON_CACHE`` or ``~/.cache/guerdon``, false
            is none.
        price_in, price_out: price of a million tokens read and written; with both, ``cost`` is counted.
    """

    backend: Literal["openai"] = "openai"
    model: str = Field(min_length=1)
    base_url: str = "https://api.openai.com/v1"
    api_key_env: str | None = "OPENAI_API_KEY"
    structured: Literal["json_schema", "json_object", "none"] = "json_schema"
    sampling: dict[str, Any] = Field(default_factory=lambda: {"temperature": 0.0, "max_tokens": 1024})
    explain: bool = True
    concurrency: int = Field(default=16, ge=1)
    timeout: float = Field(default=60.0, gt=0)
    deadline: Annotated[float, Field(gt=0)] | None = 600.0
    retries: int = Field(default=5, ge=0)
    backoff: float = Field(default=1.0, gt=0)
    max_wait: float = Field(default=60.0, gt=0)
    reread: int = Field(default=2, ge=0)
    cache: bool | str = True
    price_in: Annotated[float, Field(ge=0)] | None = None
    price_out: Annotated[float, Field(ge=0)] | None = None

    @field_validator("base_url")
    @classmethod
    def _only_an_address(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.username or parts.password or parts.query or parts.fragment:
            raise RecipeError(
                "judge 'openai': base_url holds more than an address, perhaps a key; write scheme, host and path only, "
                "and name the variable with the key in 'api_key_env'"
            )
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("want an address such as http://localhost:8000/v1")
        return value.rstrip("/")

    @field_validator("api_key_env", mode="before")
    @classmethod
    def _a_name_and_no_key(cls, value: Any) -> Any:
        plain = isinstance(value, str) and value.replace("_", "A").isalnum() and value.isascii()
        if value is not None and not (plain and value == value.upper() and not value[0].isdigit()):
            raise RecipeError(
                "judge 'openai': api_key_env is no name of an environment variable in capitals, such as "
                "OPENAI_API_KEY (what it holds is not shown here, for it may be a key)"
            )
        return value

    @field_validator("sampling")
    @classmethod
    def _nothing_of_ours(cls, value: dict[str, Any]) -> dict[str, Any]:
        taken = sorted(_OURS & set(value))
        if taken:
            raise ValueError(f"'{taken[0]}' is set by the judge itself; remove it")
        return value

    @model_validator(mode="after")
    def _usable(self) -> OpenAIJudge:
        if (self.price_in is None) != (self.price_out is None):
            raise ValueError("price_in and price_out belong together; set both, or none")
        _httpx()
        if self.api_key_env is not None:
            read_key(self.api_key_env)
        return self

    @property
    def cache_path(self) -> Path | None:
        """File of earlier answers."""
        if self.cache is False:
            return None
        return default_cache() if self.cache is True else Path(self.cache).expanduser()

    def body(self, question: Question) -> dict[str, Any]:
        """The request that asks a question."""
        properties = {"reason": {"type": "string"}} if self.explain else {}
        properties |= question.properties
        names = ", ".join(f'"{name}"' for name in properties)
        first = "Start with 'reason': one or two sentences on what decides. " if self.explain else ""
        request = f"{question.request}\n\n{first}Answer with one JSON object and nothing else; its properties: {names}."
        body: dict[str, Any] = {
            **self.sampling,
            "model": self.model,
            "messages": [
                {"role": "system", "content": question.instruction},
                {"role": "user", "content": f"{question.material}\n\n{request}"},
            ],
        }
        schema = {
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        }
        if self.structured == "json_schema":
            wanted = {"name": "verdict", "strict": True, "schema": schema}
            body["response_format"] = {"type": "json_schema", "json_schema": wanted}
        elif self.structured == "json_object":
            body["response_format"] = {"type": "json_object"}
        return body

    def _answer(self, questions: Sequence[Question]) -> list[Answer]:
        self._count(calls=0, cache_hits=0, retries=0, unreadable=0, tokens_in=0, tokens_out=0, without_usage=0)
        if self.price_in is not None:
            self._count(cost=0.0)
        return _run(self._answer_all(questions))

    async def _answer_all(self, questions: Sequence[Question]) -> list[Answer]:
        httpx = _httpx()
        keys = [self.key(question) for question in questions]
        distinct = dict(zip(keys, questions, strict=True))
        self._count(cache_hits=len(keys) - len(distinct))
        path = self.cache_path
        limits = httpx.Limits(max_connections=self.concurrency, max_keepalive_connections=self.concurrency)
        gate = asyncio.Semaphore(self.concurrency)
        async with httpx.AsyncClient(timeout=None, limits=limits) as client:  # Transport times the whole request
            transport = Transport(
                client=client,
                url=f"{self.base_url}/chat/completions",
                key_env=self.api_key_env,
                timeout=self.timeout,
                retries=self.retries,
                backoff=self.backoff,
                max_wait=self.max_wait,
                accept=_is_completion,
                count=self._count,
            )
            with nullcontext() if path is None else AnswerCache(path) as cache:
                tasks = {
                    key: asyncio.create_task(self._one(key, question, transport, cache, gate))
                    for key, question in distinct.items()
                }
                _, late = await asyncio.wait(tasks.values(), timeout=self.deadline)
                for task in late:
                    task.cancel()
                await asyncio.gather(*late, return_exceptions=True)
        return [self._result(tasks[key]) for key in keys]

    def key(self, question: Question) -> str:
        """SHA-256 of all that an answer depends on: server, model, messages, sampling and schema."""
        content = json.dumps([self.base_url, self.body(question)], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def _result(self, task: asyncio.Task[Verdict]) -> Answer:
        if task.cancelled():
            return JudgeError(f"not answered within the deadline of {self.deadline:g} s for the batch")
        error = task.exception()
        if error is None:
            return task.result()
        return error if isinstance(error, JudgeError) else JudgeError(f"{type(error).__name__}: {error}")

    async def _one(
        self, key: str, question: Question, transport: Transport, cache: AnswerCache | None, gate: asyncio.Semaphore
    ) -> Verdict:
        """The verdict on one question, from the cache or the server."""
        known = None if cache is None else cache.get(key)
        if known is not None:
            self._count(cache_hits=1)
            return read_verdict(question, known)
        body, problem = self.body(question), ""
        async with gate:
            for attempt in range(self.reread + 1):
                response = await transport.post(body, seed=f"{key}/{attempt}")
                self._spend(response.get("usage"))
                choice = response["choices"][0]
                text = transport.scrub(choice["message"]["content"] or "")
                try:
                    verdict = read_verdict(question, text)
                except UnreadableVerdict as error:
                    self._count(unreadable=1)
                    cut = choice.get("finish_reason") == "length"
                    problem = f"{error}, cut at its limit of tokens" if cut else str(error)
                    body = {**body, "messages": [*body["messages"], *_again(text, problem)]}
                else:
                    return verdict if cache is None else read_verdict(question, cache.put(key, self.model, text))
        raise UnreadableVerdict(f"'{self.model}' gave no verdict in {self.reread + 1} answers; the last one: {problem}")

    def _spend(self, usage: Any) -> None:
        """Count the tokens that a response reports, and what they cost."""
        counts = usage if isinstance(usage, dict) else {}
        read, written = counts.get("prompt_tokens"), counts.get("completion_tokens")
        if not isinstance(read, int) or not isinstance(written, int):
            self._count(without_usage=1)
            return
        self._count(tokens_in=read, tokens_out=written)
        if self.price_in is not None and self.price_out is not None:
            self._count(cost=(read * self.price_in + written * self.price_out) / 1e6)


def _is_completion(response: Mapping[str, Any]) -> bool:
    """Whether a response holds a message, be it an empty one."""
    try:
        content = response["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        return False
    return content is None or isinstance(content, str)


def _again(text: str, problem: str) -> list[dict[str, str]]:
    """What to say to a model whose answer was no verdict."""
    wanted = f"That was no valid verdict: {problem}. Answer again with the JSON object alone."
    return [{"role": "assistant", "content": text or "(nothing)"}, {"role": "user", "content": wanted}]


def _run(work: Coroutine[Any, Any, Result]) -> Result:
    """Run to the end, in a thread of its own where an event loop is running already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


def _httpx() -> Any:
    try:
        import httpx
    except ImportError:
        raise RecipeError("judge 'openai' needs the httpx package; pip install \"guerdon[judge]\"") from None
    return httpx
