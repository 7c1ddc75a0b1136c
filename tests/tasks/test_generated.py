import pytest

from guerdon.errors import RecipeError, TaskError
from guerdon.seeding import derive
from guerdon.tasks.base import Problem
from guerdon.tasks.generated import GeneratedTask, pick


class Sums(GeneratedTask):
    """Ask for the sum of two digits, in two wordings."""

    name = "sums"

    def draw(self, generator):
        a, b = sorted(generator.integers(10, size=2).tolist())
        prompt = pick(generator, (f"{a}+{b}", f"{b} and {a}"))
        return Problem(derive(0, prompt), prompt, answer=str(a + b), metadata={"asked": (a, b)}), f"{a} {b}"


def asked(problems):
    return {p.metadata["asked"] for p in problems}


@pytest.mark.parametrize("seed", range(5))
def test_no_wording_of_a_held_out_problem_is_trained_on(seed):
    task = Sums(seed, 0.3)
    held_out = task.eval_problems(20)
    train = [p for batch in range(20) for p in task.train_batch(20, batch)]
    assert not asked(held_out) & asked(train)
    # 55 pairs: about a third is held out, and training meets all that are not.
    everything = asked(train) | asked(Sums(seed, 0.3).eval_problems(20))
    assert len(asked(train)) >= 55 - 30
    assert len(everything) <= 55


def test_the_share_that_is_held_out():
    pairs = {f"{a} {b}" for b in range(100) for a in range(b)}
    for share in (0.1, 0.5):
        found = sum(Sums(3, share)._is_held_out(pair) for pair in pairs) / len(pairs)
        assert found == pytest.approx(share, abs=0.03)  # three standard errors of 4950 draws are 0.02


def test_batches_are_pure_functions_of_their_seed_and_of_different_problems():
    task = Sums(0, 0.3)
    assert task.train_batch(30, 5) == Sums(0, 0.3).train_batch(30, 5)
    assert task.train_batch(30, 5) != task.train_batch(30, 6)
    for problems in (task.train_batch(30, 5), task.eval_problems(20)):
        assert len({p.task_id for p in problems}) == len({p.prompt for p in problems}) == len(problems)
    assert task.eval_problems(10) == task.eval_problems(20)[:10]
    assert asked(Sums(1, 0.3).eval_problems(15)) != asked(task.eval_problems(15))


def test_task_ids_are_those_of_the_prompts():
    first, second = Sums(0, 0.3), Sums(9, 0.6)
    known = {p.prompt: p.task_id for p in first.train_batch(40, 0)}
    shared = [p for p in second.train_batch(30, 1) if p.prompt in known]
    assert shared
    assert all(p.task_id == known[p.prompt] for p in shared)


def test_the_vocabulary_is_of_training_problems():
    texts = set(Sums(0, 0.3).corpus())
    held_out = Sums(0, 0.3).eval_problems(20)
    assert not texts & {p.prompt for p in held_out}
    assert set("".join(p.prompt for p in held_out)) <= set("".join(texts))


def test_what_cannot_be_had_is_refused():
    with pytest.raises(TaskError, match="looking for 200 held-out problems gave only"):
        Sums(0, 0.3).eval_problems(200)
    with pytest.raises(TaskError, match="looking for 200 training problems gave only"):
        Sums(0, 0.3).train_batch(200, 0)
    for share in (0.0, 1.0, -0.5):
        with pytest.raises(RecipeError, match="want more than 0 and less than 1"):
            Sums(0, share)
