import multiprocessing

import pytest

from guerdon.rewards.judges import JudgeError
from guerdon.rewards.judges.cache import AnswerCache


def write(path, name, ready, kept):
    with AnswerCache(path) as cache:
        ready.wait(30)
        kept.put([cache.put(str(i), "m", f"{name}/{i}") for i in range(60)])


def test_the_first_answer_stays(tmp_path):
    with AnswerCache(tmp_path / "a" / "b.sqlite") as cache:
        assert cache.get("k") is None
        assert cache.put("k", "m", "one") == "one"
        assert cache.put("k", "m", "two") == "one"
    with AnswerCache(tmp_path / "a" / "b.sqlite") as cache:
        assert cache.get("k") == "one"


def test_processes_share_a_file_and_agree(tmp_path):
    path = tmp_path / "shared.sqlite"
    forking = multiprocessing.get_context("fork")  # a child needs nothing but sqlite, and importing torch takes seconds
    ready, kept = forking.Barrier(4), forking.Queue()
    children = [forking.Process(target=write, args=(path, name, ready, kept)) for name in "abcd"]
    for child in children:
        child.start()
    seen = [kept.get(timeout=60) for _ in children]
    for child in children:
        child.join(10)
    assert [child.exitcode for child in children] == [0] * 4
    assert all(answers == seen[0] for answers in seen)
    with AnswerCache(path) as cache:
        assert [cache.get(str(i)) for i in range(60)] == seen[0]


def test_what_is_no_cache_is_named(tmp_path):
    (tmp_path / "text").write_text("this is no database, and much longer than a header" * 9)
    with pytest.raises(JudgeError, match="cannot use '.*text' as a judge's cache"):
        AnswerCache(tmp_path / "text")
    with pytest.raises(JudgeError, match="delete it, or set 'cache'"):
        AnswerCache(tmp_path / "text" / "file")
