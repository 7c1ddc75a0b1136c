import json
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import reasoning_gym
import torch
from reasoning_gym.factory import DATASETS

from guerdon.errors import RecipeError, TaskError
from guerdon.registry import get
from guerdon.rewards.base import Reward, resolve_task_reward, score
from guerdon.rollouts import make_rollouts
from guerdon.tasks import reasoning_gym as module
from guerdon.tasks.reasoning_gym import (
    EVALUATES_ALGEBRA,
    EVALUATES_LITERALS,
    GLOBAL_RANDOM,
    HASH_ORDERED,
    IRREPRODUCIBLE,
    UNSOUND,
    ReasoningGym,
)

SLOW = {"futoshiki", "intermediate_integration", "knight_swap", "puzzle24", "zebra_puzzles"}  # over 40 ms a problem
SLOW |= {"arc_agi", "quantum_lock"}  # over 150 ms to build or to score
QUICK = sorted(set(DATASETS) - SLOW - IRREPRODUCIBLE.keys() - {"composite"})
WITHOUT_ANSWER = {"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"}
SUMS = {"dataset": "chain_sum", "config": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}}


@pytest.fixture
def _fixed_hash(monkeypatch):
    monkeypatch.setenv("PYTHONHASHSEED", "0")


def build(dataset, **options):
    options.setdefault("strict", dataset not in UNSOUND)
    return ReasoningGym(dataset=dataset, **options)


def test_it_is_registered_and_described():
    method = get("task", "reasoning_gym")
    assert method.target is ReasoningGym
    assert method.validate({"dataset": "chain_sum"})["eval_size"] == 512


@pytest.mark.usefixtures("_fixed_hash")
@pytest.mark.parametrize("name", QUICK)
def test_every_quick_dataset(name):
    task, again = (build(name, train_size=60, eval_size=4) for _ in range(2))
    batch, held_out = task.train_batch(4, seed=1), task.eval_problems(4)
    assert again.eval_problems(4) == held_out
    assert again.train_batch(4, seed=2) == task.train_batch(4, seed=2)
    assert again.train_batch(4, seed=1) == batch

    problems = batch + held_out
    assert len({p.prompt for p in problems}) == len({p.task_id for p in problems}) == 8
    for problem in problems:
        assert problem.prompt == problem.metadata["question"]
        assert problem.answer == problem.metadata["answer"]
        before = str(problem.metadata)
        garbage = ["", "  ", "zzz garbage", "<answer>", "?", "[]", "{}", "x" * 2000, "self", "-", "\x00", "🙂"]
        scores = [task.score(text, problem.metadata) for text in garbage]
        if name != "game_of_life_halting":
            assert max(scores) < 1
        if name in WITHOUT_ANSWER:
            assert problem.answer is None
        else:
            assert isinstance(problem.answer, str)
            assert task.score(problem.answer, problem.metadata) == 1.0
            assert task.score(f"\n {problem.answer}\n", problem.metadata) == 1.0
        assert str(problem.metadata) == before


def test_the_split_is_by_question_not_by_index():
    # 10 * 10 pairs, and a minus for the pairs: few enough that two seeds repeat each other's questions
    space = reasoning_gym.create_dataset("chain_sum", **SUMS["config"], seed=1, size=10_000)
    questions = {space[i]["question"] for i in range(10_000)}
    task = ReasoningGym(**SUMS, eval_size=40)
    held_out = {p.prompt for p in task.eval_problems(40)}
    drawn = {p.prompt for seed in range(60) for p in task.train_batch(30, seed)}
    assert len(held_out) == 40
    assert held_out <= questions
    assert drawn == questions - held_out
    assert {task._train_problem(i).prompt for i in range(1000)} & held_out

    rest = len(questions) - 40
    assert len(task.train_batch(rest, seed=0)) == rest
    with pytest.raises(TaskError, match=rf"gave {rest} different .*\(and 40 that are\), want {rest + 1}; lower"):
        task.train_batch(rest + 1, seed=0)


def test_a_space_too_small_for_the_held_out_problems_is_refused():
    task = ReasoningGym(**SUMS)
    with pytest.raises(TaskError, match=r"3048 draws gave \d+ different questions, too few to hold out 512 .*widen"):
        task.train_batch(1, seed=0)
    with pytest.raises(TaskError, match="too few to hold out 512"):
        task.eval_problems(1)


def test_a_training_pool_smaller_than_the_batch_is_refused():
    task = ReasoningGym(dataset="chain_sum", train_size=8, eval_size=4)
    assert len({p.task_id for p in task.train_batch(8, seed=0)}) == 8
    with pytest.raises(TaskError, match=r"8 training problems gave 8 different .*want 9; lower the batch"):
        task.train_batch(9, seed=0)


def test_held_out_problems_are_a_prefix():
    task = ReasoningGym(dataset="chain_sum", eval_size=16)
    assert task.eval_problems(16)[:5] == task.eval_problems(5)
    assert task.eval_problems(0) == []
    with pytest.raises(TaskError, match="holds out 16 problems, want 17; raise eval_size"):
        task.eval_problems(17)
    assert ReasoningGym(dataset="chain_sum", eval_size=0).eval_problems(0) == []


def test_the_seed_chooses_the_problems_and_the_batch_seed_the_order():
    def prompts(batch_seed, **options):
        task = ReasoningGym(dataset="chain_sum", eval_size=8, **options)
        return [p.prompt for p in task.train_batch(64, batch_seed)], [p.prompt for p in task.eval_problems(8)]

    assert prompts(3) == prompts(3, seed=0)
    assert prompts(3)[0] != prompts(4)[0]
    assert prompts(3)[1] == prompts(4)[1]
    other = prompts(3, seed=1)
    assert other[0] != prompts(3)[0]
    assert other[1] != prompts(3)[1]


def test_neighbouring_seeds_are_not_the_same_problems_shifted():
    config = {"min_terms": 6, "max_terms": 6, "min_digits": 4}  # no question comes up twice by chance
    tasks = [ReasoningGym(dataset="chain_sum", config=config, seed=seed, eval_size=50) for seed in (0, 1)]
    questions = [
        [t._train_problem(i).prompt for i in range(50)] + [p.prompt for p in t.eval_problems(50)] for t in tasks
    ]
    assert len(set(questions[0] + questions[1])) == 200


def test_a_question_has_one_task_id_forever():
    tasks = [ReasoningGym(**SUMS, seed=seed, eval_size=20) for seed in range(2)]
    ids: dict[str, set[int]] = {}
    for task in tasks:
        for problem in [*task.train_batch(60, seed=0), *task.eval_problems(20)]:
            ids.setdefault(problem.prompt, set()).add(problem.task_id)
            assert 0 <= problem.task_id < 2**63
    assert all(len(found) == 1 for found in ids.values())
    assert len(set.union(*ids.values())) == len(ids)


def test_prompts_lose_boilerplate_and_gain_a_template():
    boilerplate = "State the final answer to the following arithmetic problem: "
    task = ReasoningGym(dataset="chain_sum", eval_size=4, strip=boilerplate, prompt="Q: {question} \\boxed{}")
    for problem in [*task.train_batch(8, seed=0), *task.eval_problems(4)]:
        sum_ = problem.metadata["question"].removeprefix(boilerplate)
        assert re.fullmatch(r"[-+ 0-9]+ =", sum_)
        assert problem.prompt == f"Q: {sum_} \\boxed{{}}"
        assert task.score(problem.answer, problem.metadata) == 1.0
    both = ReasoningGym(
        dataset="gcd",
        strip=["Find the Greatest Common Divisor (GCD) of these numbers:", ". Give only the GCD as your final answer."],
    )
    assert re.fullmatch(r"\d+, \d+", both.train_batch(1, seed=0)[0].prompt)
    with pytest.raises(TaskError, match=r"strip 'State the finale' is in none .* such as 'State the final answer"):
        ReasoningGym(dataset="chain_sum", strip="State the finale")
    with pytest.raises(RecipeError, match=r"prompt 'Q' lacks '\{question\}'; add it"):
        ReasoningGym(dataset="chain_sum", prompt="Q")


def test_where_the_answer_stands():
    def given(extract, text):
        task = ReasoningGym(dataset="chain_sum", extract=extract)
        problem = task.train_batch(1, seed=0)[0]
        return task.score(text.replace("#", problem.answer), problem.metadata)

    assert [given("whole", t) for t in ("#", " #\n", "so #", "a\n#", "")] == [1, 1, 0, 0, 0]
    assert [given("last_line", t) for t in ("#", "a\n #\n\n", "#\na", "a\nso #", "")] == [1, 1, 0, 0, 0]
    tagged = ["<answer>#</answer>", "a <answer> # </answer> b", "<answer>0</answer><answer>#</answer>"]
    assert [given("tag", t) for t in tagged] == [1, 1, 1]
    untagged = ["#", "<answer>#", "<answer>#</answer><answer>x</answer>", "<answer></answer>", ""]
    assert [given("tag", t) for t in untagged] == [0] * 5


def test_strict_scores_are_all_or_nothing():
    strict, raw = (ReasoningGym(dataset="sentence_reordering", strict=strict) for strict in (True, False))
    entry = strict.train_batch(1, seed=0)[0].metadata
    words = entry["answer"].split()
    part = " ".join([*words[:-2], words[-1], words[-2]])
    assert 0 < raw.score(part, entry) < 1
    assert strict.score(part, entry) == 0.0
    assert raw.score("nonsense", entry) == 0.05
    assert strict.score("nonsense", entry) == 0.0
    assert raw.score(entry["answer"], entry) == strict.score(entry["answer"], entry) == 1.0


def test_a_verifier_that_breaks_on_a_text_scores_it_wrong_and_on_the_problem_raises(monkeypatch):
    task = ReasoningGym(dataset="prime_factorization")
    entry = task.train_batch(1, seed=0)[0].metadata
    with pytest.raises(ValueError, match="invalid literal"):
        task._train.score_answer("zzz", dict(entry))
    assert task.score("zzz", entry) == 0.0
    with pytest.raises(ValueError, match="invalid literal"):
        task.score("zzz", {**entry, "answer": "not a product"})


def test_the_scorer_is_the_reward_named_task():
    task = ReasoningGym(dataset="spell_backward", eval_size=4)
    problems = task.train_batch(3, seed=0)
    method = resolve_task_reward(task)
    assert method is not None
    assert method.requires == ("text", "metadata")
    batch = make_rollouts(
        torch.arange(3),
        torch.tensor([p.task_id for p in problems]),
        torch.ones(3, 1, dtype=torch.bool),
        torch.zeros(3, 1),
        done=torch.ones(3, dtype=torch.bool),
        truncated=torch.zeros(3, dtype=torch.bool),
        payload={},
        text=[problems[0].answer, problems[0].answer, problems[2].answer],
        metadata=[p.metadata for p in problems],
    )
    batch, faults = score(batch, [Reward("task", method, method.validate({}))])
    assert faults == []
    assert batch.rewards["task"].tolist() == [1.0, 0.0, 1.0]


@pytest.mark.parametrize("name", ["chain_sum", "emoji_mystery", "spell_backward"])
def test_the_corpus_shows_every_character_but_no_held_out_text(name):
    task = ReasoningGym(dataset=name, train_size=2000, eval_size=64)
    corpus = list(task.corpus())
    seen = set("".join(corpus))
    for problem in [*task.eval_problems(64), *task.train_batch(300, seed=5)]:
        assert set(problem.prompt) | set(problem.answer) <= seen
    assert not {p.prompt for p in task.eval_problems(64)} & set(corpus)
    assert corpus == list(ReasoningGym(dataset=name, train_size=2000, eval_size=64).corpus())


def test_characters_that_only_held_out_problems_show_are_in_the_corpus():
    task = ReasoningGym(dataset="emoji_mystery", train_size=4, eval_size=64)
    trained = {c for p in task.train_batch(4, seed=0) for c in p.prompt + p.answer}
    held_out = {c for p in task.eval_problems(64) for c in p.prompt + p.answer}
    assert held_out - trained
    assert set("".join(task.corpus())) == trained | held_out


def test_the_corpus_of_a_small_pool_and_of_one_without_answers():
    assert len(list(ReasoningGym(dataset="chain_sum", train_size=3, eval_size=2).corpus())) == 7
    assert len(list(ReasoningGym(dataset="rush_hour", train_size=3, eval_size=0).corpus())) == 4


def test_generation_is_cheap():
    task = ReasoningGym(dataset="chain_sum")
    task.train_batch(1, seed=0)
    start = time.process_time()
    for seed in range(50):
        task.train_batch(64, seed)
    assert time.process_time() - start < 2.0


@pytest.mark.parametrize("name", sorted(GLOBAL_RANDOM))
def test_problems_drawn_from_global_generators_are_fixed_and_leave_no_trace(name):
    batches = []
    for global_seed in (1, 2):
        random.seed(global_seed)
        np.random.seed(global_seed)  # noqa: NPY002
        python, arrays = random.getstate(), np.random.get_state()  # noqa: NPY002
        batches.append(ReasoningGym(dataset=name, train_size=60, eval_size=4).train_batch(40, seed=0))
        assert random.getstate() == python
        assert str(np.random.get_state()) == str(arrays)  # noqa: NPY002
    assert batches[0] == batches[1]


SCAN = """
import contextlib, hashlib, io, json, random, sys
import numpy as np, reasoning_gym
from reasoning_gym.factory import DATASETS
which = json.loads(sys.argv[1])
found = {}
for name in sorted(set(DATASETS) - {"codeio", "composite"}):
    with contextlib.redirect_stdout(io.StringIO()):
        source = reasoning_gym.create_dataset(name, seed=12345, size=60)
        random.seed(0), np.random.seed(0)
        state = random.getstate(), str(np.random.get_state())
        items = [source[i] for i in which.get(name, range(3))]
    digest = hashlib.blake2b(repr([(x["question"], x["answer"]) for x in items]).encode()).hexdigest()
    found[name] = digest, (random.getstate(), str(np.random.get_state())) != state
json.dump(found, sys.stdout)
"""
WHICH = {"list_functions": list(range(40)), "knight_swap": [1]}
WHICH |= dict.fromkeys("futoshiki intermediate_integration puzzle24 sokoban sudoku zebra_puzzles".split(), (0,))


def test_which_datasets_depend_on_the_hash_seed_or_on_global_generators():
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", SCAN, json.dumps(WHICH)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2")
    ]
    first, second = (json.loads(process.communicate()[0]) for process in processes)
    assert {name for name in first if first[name][0] != second[name][0]} - GLOBAL_RANDOM == HASH_ORDERED
    assert {name for name in first if first[name][1]} == GLOBAL_RANDOM


def test_a_dataset_that_nothing_can_reproduce_is_refused():
    with pytest.raises(TaskError, match=r"'codeio' runs programs that read the clock .*choose another dataset"):
        ReasoningGym(dataset="codeio", strict=False)


@pytest.mark.parametrize("name", sorted(HASH_ORDERED))
def test_hash_ordered_datasets_need_a_fixed_hash_seed(name, monkeypatch):
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    with pytest.raises(TaskError, match=f"'{name}' orders its problems by Python's string hash.*PYTHONHASHSEED=0"):
        build(name, train_size=10)
    monkeypatch.setenv("PYTHONHASHSEED", "random")
    with pytest.raises(TaskError, match="PYTHONHASHSEED=0"):
        build(name, train_size=10)


@pytest.mark.parametrize(
    ("name", "answer"), [("coin_flip", "0"), ("game_of_life_halting", "?"), ("puzzle24", "6*4*1*1")]
)
def test_unsound_verifiers_are_refused_where_a_strict_score_is_promised(name, answer):
    assert name in UNSOUND
    with pytest.raises(TaskError, match=f"verifier of reasoning_gym '{name}' .*set 'strict: false' and name a reward"):
        ReasoningGym(dataset=name)
    raw = ReasoningGym(dataset=name, strict=False, train_size=10, eval_size=0)
    wrong = [p for p in raw.train_batch(3, seed=0) if p.answer != answer]
    assert sum(raw.score(answer, p.metadata) == 1 for p in wrong) >= 2


def test_the_verifiers_that_evaluate_text_are_known():
    root = Path(reasoning_gym.__file__).parent
    found = {
        str(path.relative_to(root))
        for path in root.rglob("*.py")
        if re.search(r"\b(eval|exec|sympify|parse_expr)\((?!self)", path.read_text())
    }
    of_answers = {f"algebra/{n}.py" for n in ("intermediate_integration", "polynomial_multiplication")}
    of_answers |= {"algebra/simple_integration.py", "games/countdown.py", "games/puzzle24.py", "games/n_queens.py"}
    of_answers |= {f"algorithmic/{n}.py" for n in ("binary_matrix", "spiral_matrix", "string_insertion")}
    of_their_own = {f"arithmetic/gsm_symbolic/generators_{n}.py" for n in ("00_49", "50_99")}
    of_their_own |= {"algorithmic/number_sorting.py", "arithmetic/basic_arithmetic.py"}
    of_their_own |= {"arithmetic/bitwise_arithmetic.py", "code/codeio.py", "logic/propositional_logic.py"}
    assert found == of_answers | of_their_own
    assert {Path(name).stem for name in of_answers} == EVALUATES_LITERALS | EVALUATES_ALGEBRA


@pytest.mark.usefixtures("_fixed_hash")
@pytest.mark.parametrize("name", sorted((EVALUATES_LITERALS | EVALUATES_ALGEBRA) - SLOW))
def test_what_the_policy_writes_is_never_executed(name, tmp_path):
    task = build(name, train_size=10, eval_size=0)
    entry = task.train_batch(1, seed=0)[0].metadata
    start = time.process_time()
    for attack in (
        f"__import__('pathlib').Path({str(tmp_path / 'owned')!r}).touch()",
        f" [open({str(tmp_path / 'owned')!r}, 'w')]",
        f"open({str(tmp_path / 'owned')!r}, 'w')",
        f"f\"{{open({str(tmp_path / 'owned')!r}, 'w')}}\"",
        "exit()",
        "(lambda: exit())()",
        "[exit() for _ in 'a']",
        "sin.__class__.__mro__",
        "9**9**9**9",
        "9**-9**9**9",
        "(((9**99)**99)**99)**99",
        "exp(exp(10**9))",
        "sin(x, y=exit())",
        "factorial(10**9)",
        "1000000000!",
        "[0]*10**10",
        "1<<10**11",
        "list(range(10**10))",
        "(" * 900 + "1" + ")" * 900,
        "-" * 999 + "1",
    ):
        assert task.score(attack, entry) == 0.0
    assert time.process_time() - start < 2.0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "answer",
    [
        *("25 + (28*97 + 68 - 59)/25", "-7*X**6/4 - X**4/6 + 9*X**2 + C", "4785*z**6 - 90288*z**5", "2.5e3"),
        *("-3*sin(4*x + 2)**4/4 + C", "x*exp(2*x)/2 + log(Abs(cos(x)))", "x**(3/2)", "x**-2", " 1 + 1"),
    ],
)
def test_algebra_that_problems_ask_for_is_let_through(answer):
    assert module._is_algebra(answer)


@pytest.mark.parametrize("answer", ["[1, 2]", "[['0', -1.5], ('a', None)]", "{'a': {1}}", "1 2 3", "_ Q _\n", "B C"])
def test_literals_and_what_is_no_expression_are_let_through(answer):
    assert module._is_literal(answer)


@pytest.mark.parametrize("answer", ["self", "f()", "a.b", "a[0]", "[x for x in y]", "f'{x}'", "lambda: 0", "1 + 1"])
def test_other_expressions_are_not_literals(answer):
    assert not module._is_literal(answer)


MIXTURE = [
    {"name": "chain_sum", "weight": 1, "config": {"max_terms": 3}},
    {"name": "string_insertion", "weight": 2, "config": {}},
]


def test_a_composite_mixes_datasets_and_their_verifiers():
    task = ReasoningGym(dataset="composite", config={"datasets": MIXTURE}, eval_size=8)
    problems = task.train_batch(40, seed=0)
    assert {p.metadata["metadata"]["source_dataset"] for p in problems} == {"chain_sum", "string_insertion"}
    for problem in problems:
        assert task.score(problem.answer, problem.metadata) == 1.0
        assert task.score("exit()", problem.metadata) == 0.0
    assert task.train_batch(40, seed=0) == problems


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"dataset": "chain_sums"}, RecipeError, "no dataset 'chain_sums'; did you mean 'chain_sum'"),
        ({"dataset": "chain_sum", "config": {"min_term": 2}}, RecipeError, "'min_term'; did you mean 'min_terms'"),
        ({"dataset": "chain_sum", "config": {"seed": 2}}, RecipeError, "config sets 'seed'; use the task's own 'seed'"),
        ({"dataset": "chain_sum", "config": {"size": 2}}, RecipeError, "config sets 'size'; use 'train_size'"),
        ({"dataset": "chain_sum", "config": {"min_terms": 9}}, RecipeError, "refuses config .*'min_terms': 9.*correct"),
        ({"dataset": "chain_sum", "config": {"min_terms": "x"}}, RecipeError, "refuses config .*TypeError"),
        ({"dataset": "chain_sum", "train_size": 0}, RecipeError, "train_size is 0"),
        ({"dataset": "chain_sum", "eval_size": -1}, RecipeError, "eval_size -1"),
        ({"dataset": "composite"}, RecipeError, "'composite' refuses config"),
        ({"dataset": "composite", "config": {"datasets": ["gcd"]}}, RecipeError, "has 'gcd', want name, weight and"),
        (
            {"dataset": "composite", "config": {"datasets": [{"name": "gdc", "weight": 1, "config": {}}]}},
            RecipeError,
            "no dataset 'gdc'; did you mean 'gcd'",
        ),
        (
            {"dataset": "composite", "config": {"datasets": [{"name": "coin_flip", "weight": 1, "config": {}}]}},
            TaskError,
            "verifier of reasoning_gym 'coin_flip'",
        ),
    ],
)
def test_what_cannot_work_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        ReasoningGym(**options)


@pytest.mark.usefixtures("_fixed_hash")
def test_a_dataset_with_an_upper_size_names_the_option_to_lower():
    with pytest.raises(
        RecipeError, match=r"100000 problems .train.: ValueError: Dataset size too large.*lower train_size"
    ):
        ReasoningGym(dataset="word_ladder")
