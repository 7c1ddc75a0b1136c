import asyncio
import json
from contextlib import aclosing

import pytest

from guerdon.monitor.live import watch
from guerdon.monitor.live.store import RunRow
from guerdon.monitor.live.watch import Watcher, events


class Files:
    """Runs whose versions a test changes."""

    def __init__(self, **versions):
        self.versions, self.looks, self.broken = versions, 0, False

    def look(self):
        self.looks += 1
        if self.broken:
            raise OSError("stale file handle")
        return {n: RunRow(n, "running", parts={"standing": v}) for n, v in self.versions.items()}


def versions(rows):
    return {name: row.version for name, row in rows.items()}


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 10))


async def message(stream):
    """The next message of an event stream, without comments."""
    async for chunk in stream:
        if chunk.startswith(b"data: "):
            assert chunk.endswith(b"\n\n")
            return json.loads(chunk[6:])
    return None


def test_a_page_hears_everything_first_and_then_what_changed():
    files = Files(a="1", b="1")

    async def follow():
        watcher = Watcher(files.look, seconds=0.01)
        async with aclosing(events(watcher, versions)) as stream:
            heard = [await message(stream)]
            files.versions["b"] = "2"
            heard.append(await message(stream))
            files.versions["c"] = "1"
            del files.versions["a"]
            heard.append(await message(stream))
        return heard

    assert run(follow()) == [{"a": "1", "b": "1"}, {"b": "2"}, {"c": "1", "a": None}]


def test_a_change_that_a_page_does_not_show_is_not_sent():
    files = Files(a="1", b="1")

    async def follow():
        watcher = Watcher(files.look, seconds=0.01)
        async with aclosing(events(watcher, lambda rows: {"a": rows["a"].version})) as stream:
            heard = [await message(stream)]
            files.versions["b"] = "2"
            await asyncio.sleep(0.1)
            files.versions["a"] = "2"
            return [*heard, await message(stream)]

    assert run(follow()) == [{"a": "1"}, {"a": "2"}]


def test_one_look_serves_every_page_and_nobody_looks_when_nobody_watches():
    files = Files(a="1")

    async def follow():
        watcher = Watcher(files.look, seconds=0.05)
        streams = [events(watcher, versions) for _ in range(20)]
        assert [await message(stream) for stream in streams] == [{"a": "1"}] * 20
        assert watcher.watchers == 20
        looks = files.looks
        for stream in streams:
            await stream.aclose()
        assert watcher.watchers == 0
        await asyncio.sleep(0.2)
        assert files.looks <= looks + 1
        async with aclosing(events(watcher, versions)) as again:
            files.versions["a"] = "2"
            assert await message(again) == {"a": "2"}
        return looks

    assert run(follow()) <= 3


def test_a_slow_page_gets_the_newest_state_once():
    files = Files(a="1")

    async def follow():
        watcher = Watcher(files.look, seconds=0.01)
        async with aclosing(events(watcher, versions)) as stream:
            await message(stream)
            for version in "2345":
                files.versions["a"], seen = version, files.looks
                while files.looks < seen + 2:  # the first of them is over, and saw this version
                    await asyncio.sleep(0.01)
            return await message(stream)

    assert run(follow()) == {"a": "5"}


def test_a_look_that_fails_is_made_again():
    files = Files(a="1")

    async def follow():
        watcher = Watcher(files.look, seconds=0.01)
        async with aclosing(events(watcher, versions)) as stream:
            await message(stream)
            files.broken = True
            await asyncio.sleep(0.1)
            files.broken, files.versions["a"] = False, "2"
            return await message(stream)

    assert run(follow()) == {"a": "2"}


def test_closing_ends_every_stream():
    files = Files(a="1")

    async def follow():
        watcher = Watcher(files.look, seconds=0.01)
        streams = [events(watcher, versions) for _ in range(3)]
        for stream in streams:
            await message(stream)
        ends = [asyncio.create_task(message(stream)) for stream in streams]
        await asyncio.sleep(0.05)
        watcher.close()
        return await asyncio.gather(*ends)

    assert run(follow()) == [None, None, None]


def test_silence_is_filled_with_comments(monkeypatch):
    monkeypatch.setattr(watch, "HEARTBEAT_SECONDS", 0.02)

    async def follow():
        watcher = Watcher(Files(a="1").look, seconds=0.01)
        async with aclosing(events(watcher, versions)) as stream:
            return [chunk async for chunk, _ in zip_async(stream, range(12))]

    heard = run(follow())
    assert heard[0].startswith(b"retry: ")
    assert set(heard[1:]) == {b'data: {"a": "1"}\n\n', b": still here\n\n"}
    assert heard.count(b'data: {"a": "1"}\n\n') == 1


async def zip_async(stream, numbers):
    for number in numbers:
        yield await anext(stream), number


@pytest.mark.parametrize(("idle", "looks"), [(100.0, (6, 60)), (0.0, (1, 3))])
def test_runs_where_nothing_happens_are_looked_at_less_often(monkeypatch, idle, looks):
    monkeypatch.setattr(watch, "IDLE_AFTER", idle)
    monkeypatch.setattr(watch, "IDLE_SECONDS", 10.0)
    files = Files(a="1")

    async def follow():
        watcher = Watcher(files.look, seconds=0.01)
        async with aclosing(events(watcher, versions)) as stream:
            await message(stream)
            await asyncio.sleep(0.6)

    run(follow())
    assert looks[0] <= files.looks <= looks[1]


def test_a_slow_file_system_is_left_time_between_looks():
    files = Files(a="1")

    def slow_look():
        import time

        time.sleep(0.05)
        return files.look()

    async def follow():
        watcher = Watcher(slow_look, seconds=0.0)
        async with aclosing(events(watcher, versions)) as stream:
            await message(stream)
            await asyncio.sleep(0.7)

    run(follow())
    assert files.looks <= 3
