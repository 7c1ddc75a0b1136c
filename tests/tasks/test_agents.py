import pytest

from guerdon.errors import TaskError
from guerdon.tasks.agents import Passage, PythonAgent, Search, bm25


def played(task, problem):
    session = task.begin([problem], [0])
    said = [session.reset()[0].observation]
    for action in problem.episode[::2]:
        said.append(session.step([0], [action])[0])
    session.close()
    return said


def test_bm25_finds_the_passage_that_has_the_words():
    pytest.importorskip("bm25s")
    texts = ["ba boss ce .", "ba friend di .", "ce boss di .", "di boss ba ."]
    passages = [Passage(text[:2], text) for text in texts]
    assert bm25(passages, "ba friend", 1) == ["ba friend di ."]
    assert bm25(passages, "boss ce", 2) == ["ce boss di .", "ba boss ce ."]
    assert bm25(passages, "the boss of ba", 1) == ["ba boss ce ."]
    assert bm25(passages, "nobody", 3) == []
    assert bm25(passages, "", 3) == []


def test_a_question_takes_a_search_per_hop():
    pytest.importorskip("bm25s")
    task = Search(hops=[1, 2, 3], shallow=0.0)
    for problem in task.train_batch(30, 0):
        prompt, *heard = played(task, problem)
        assert prompt == problem.prompt
        assert len(heard) == problem.metadata["hops"] + 1
        for step, (head, relation, tail) in zip(heard, problem.metadata["triples"], strict=False):
            assert step.observation == f"{head} {relation} {tail} ."
        assert (heard[-1].reward, heard[-1].terminated) == (1.0, True)
        assert [step.observation for step in heard[:-1]] == list(problem.episode[1::2])


def test_guessing_seldom_pays():
    pytest.importorskip("bm25s")
    task = Search(hops=[2], shallow=1.0)
    problems = task.train_batch(200, 0)
    assert all(len(problem.episode) < 5 for problem in problems)
    assert sum(played(task, problem)[-1].reward for problem in problems) < 30


def test_words_of_search_are_in_its_corpus():
    pytest.importorskip("bm25s")
    task = Search()
    known = set(" ".join(task.corpus()).split())
    said = {w for p in task.train_batch(100, 0) for text in (p.prompt, *p.episode) for w in text.split()}
    assert said <= known


def test_programs_run_in_the_sandbox():
    task = PythonAgent(skill=1.0)
    problems = task.train_batch(3, 0)
    for problem in problems:
        _, printed, end = played(task, problem)
        assert printed.observation == problem.answer == str(eval(problem.prompt.rstrip("?")))
        assert (end.reward, end.terminated) == (1.0, True)
    session = task.begin(problems, [0, 0, 0])
    session.reset()
    heard = session.step([0, 1, 2], ["python print(1/0)", "python x = 1", "answer nothing"])
    assert heard[0].observation == "ZeroDivisionError: division by zero"
    assert heard[1].observation == "no output (ok)"
    assert (heard[2].reward, heard[2].terminated) == (0.0, True)


def test_held_out_expressions_are_never_trained_on():
    task = PythonAgent(terms=2, digits=1)
    held_out = {problem.task_id for problem in task.eval_problems(30)}
    assert len(held_out) == 30
    assert not held_out & {problem.task_id for seed in range(5) for problem in task.train_batch(100, seed)}
    with pytest.raises(TaskError, match="fewer than 300"):
        task.train_batch(300, 0)
