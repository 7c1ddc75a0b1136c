import asyncio
import functools
import gc
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import graders
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import guerdon
from guerdon.errors import RecipeError, RewardError
from guerdon.monitor.progress import Progress
from guerdon.recipe import load_recipe
from guerdon.registry import describe, get
from guerdon.rewards.base import Calls, Reward, Score, Scorer, score
from guerdon.rewards.wire import decode, encode
from guerdon.rewards.workers import WorkerPool, pack
from guerdon.rollouts import make_rollouts
from guerdon.training.folder import RunFolder
from guerdon.training.plan import build, make_plan


def batch(texts, group=None, **fields):
    n = len(texts)
    return make_rollouts(
        torch.tensor(group or [0] * n),
        torch.arange(n),
        torch.ones(n, 2, dtype=torch.bool),
        torch.zeros(n, 2),
        done=torch.ones(n, dtype=torch.bool),
        truncated=torch.zeros(n, dtype=torch.bool),
        payload={},
        text=list(texts),
        **fields,
    )


def spec(function, options=None, calls=None, name="r", **settings):
    method = describe("reward", function, name)
    return Reward(name, method, method.validate(options or {}), calls=calls or Calls(), **settings)


@pytest.fixture
def scored():
    """Score texts by one reward; its workers end with the test."""
    made = []

    def run(function, texts, options=None, group=None, **calls):
        reward = spec(function, options, Calls(**calls))
        made.append(reward)
        out, faults = score(batch(texts, group), [reward])
        return out.rewards["r"].tolist(), [(f.row, f.kind) for f in faults], faults

    yield run
    for reward in made:
        reward.close()


def gone(pid):
    """Whether a process has ended, or is about to be reaped."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"


def eventually(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return True


def test_workers_score_as_the_trainer_does(scored):
    texts = ["a" * n for n in range(1, 20)]
    here, _, _ = scored(graders.length, texts, {"factor": 0.5})
    for workers in (1, 3):
        values, faults, _ = scored(graders.length, texts, {"factor": 0.5}, workers=workers)
        assert values == here == [n / 2 for n in range(1, 20)]
        assert faults == []


def test_the_work_is_done_elsewhere_and_shared(scored):
    values, _, _ = scored(graders.who, ["x"] * 4)
    assert set(values) == {float(os.getpid())}
    values, _, _ = scored(graders.slow, ["x"] * 8, {"seconds": 0.01}, workers=2)
    pids, _, _ = scored(graders.who, ["x"] * 8, workers=1)
    assert len(set(pids)) == 1
    assert os.getpid() not in pids


def test_a_worker_loads_torch_only_for_a_function_that_wants_it(scored):
    assert scored(graders.loaded, ["x"])[0] == [1.0]
    assert scored(graders.loaded, ["x"], workers=1)[0] == [0.0]


ORDERS = ["say 1", "hang", "say 2", "raise no", "crash", "say 3", "exit", "late x", "quit", "spin", "say 4"]


@pytest.mark.parametrize("workers", [1, 3])
def test_every_kind_of_failure_is_a_fault_of_its_sample_only(scored, workers):
    values, faults, said = scored(graders.obey, ORDERS, workers=workers, timeout=0.5)
    assert faults == [
        *[(1, "timeout"), (3, "exception"), (4, "killed"), (6, "killed"), (7, "timeout"), (8, "exception")],
        (9, "timeout"),
    ]
    assert [v for v in values if not math.isnan(v)] == [1.0, 2.0, 3.0, 4.0]
    assert [f.message for f in said] == [
        *["no result within 0.5 s", "ValueError: no", "the worker died of SIGSEGV", "the worker exited with status 3"],
        *["TimeoutError: x", "SystemExit: 4", "no result within 0.5 s"],
    ]


def test_a_time_limit_alone_asks_for_a_worker(scored):
    values, faults, _ = scored(graders.obey, ["hang", "say 2"], timeout=0.3)
    assert faults == [(0, "timeout")]
    assert values[1] == 2.0


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_a_memory_limit_holds_and_the_next_sample_is_scored(scored):
    values, faults, said = scored(graders.obey, ["eat", "say 2", "eat", "say 4"], memory_mb=200)
    assert faults == [(0, "memory"), (2, "memory")]
    assert said[0].message.startswith("MemoryError")
    assert values[1::2] == [2.0, 4.0]
    assert scored(graders.obey, ["eat 1"], memory_mb=2000)[0] == [1.0], "what the limit allows is no fault"


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_a_worker_that_ran_out_of_memory_is_replaced_so_that_hoarding_costs_no_more(scored):
    values, faults, _ = scored(graders.obey, [f"hoard {n}" for n in range(1, 6)], memory_mb=100)
    assert faults == [(1, "memory"), (3, "memory")]
    assert values[::2] == [1.0, 3.0, 5.0]
    tried_again = scored(graders.obey, [f"hoard {n}" for n in range(1, 6)], memory_mb=100, retries=1)
    assert tried_again[:2] == ([1.0, 2.0, 3.0, 4.0, 5.0], [])


@pytest.mark.parametrize(("how", "kind"), [("die", "killed"), ("hang", "timeout"), ("lose", "exception")])
def test_what_another_try_may_heal_is_tried_again_if_asked(scored, tmp_path, how, kind):
    text = f"{how} {tmp_path / how}"
    _, faults, _ = scored(graders.heal, [text], workers=1, timeout=0.5)
    assert faults == [(0, kind)]
    (tmp_path / how).unlink()
    assert scored(graders.heal, [text], workers=1, timeout=0.5, retries=1)[:2] == ([1.0], [])


def test_an_error_of_the_function_is_not_tried_again(scored, tmp_path):
    text = f"raise {tmp_path / 'mark'}"
    for where in ({"workers": 1}, {}):
        _, faults, said = scored(graders.heal, [text], retries=3, **where)
        assert faults == [(0, "exception")]
        assert said[0].message == "ValueError: for good"
        (tmp_path / "mark").unlink()


def test_tries_are_counted_in_the_message(scored):
    for calls in ({"workers": 1}, {}):
        assert scored(graders.obey, ["lost it"], retries=2, **calls)[2][0].message == "ConnectionError: it (3 tries)"


def test_a_killed_worker_that_was_idle_costs_no_sample():
    with WorkerPool(pack(graders.length, {}), Calls(workers=1)) as pool:
        assert pool.call({"text": "ab"}) == 2.0
        (pid,) = pool.pids()
        os.kill(pid, signal.SIGKILL)
        assert pool.call({"text": "abc"}) == 3.0
        assert pool.pids() != [pid]


def test_what_a_killed_worker_started_ends_too(scored, tmp_path):
    scored(graders.obey, [f"leave {tmp_path / 'pid'}"], timeout=1.0)
    assert eventually(lambda: gone(int((tmp_path / "pid").read_text())))


def test_a_worker_that_died_is_noticed_though_what_it_started_holds_on_to_the_connection(scored):
    began = time.monotonic()
    values, faults, said = scored(graders.obey, ["split", "say 2"], workers=1, timeout=60)
    assert time.monotonic() - began < 20
    assert (values[1], faults) == (2.0, [(0, "killed")])
    assert said[0].message == "the worker exited with status 3"


def test_a_pool_that_nobody_holds_any_more_ends_its_workers():
    pool = WorkerPool(pack(graders.length, {}), Calls(workers=1))
    pool.call({"text": "x"})
    (pid,) = pool.pids()
    del pool
    gc.collect()
    assert eventually(lambda: gone(pid))


def test_closing_ends_every_worker_even_in_the_middle_of_a_call_and_a_later_call_starts_anew():
    pool = WorkerPool(pack(graders.obey, {}), Calls(workers=2))
    futures = [pool.submit({"text": "hang"}) for _ in range(4)]
    eventually(lambda: len(pool.pids()) == 2)
    pids = pool.pids()
    began = time.monotonic()
    pool.close()
    assert time.monotonic() - began < 2.0
    assert all(gone(pid) for pid in pids)
    assert eventually(lambda: all(f.done() for f in futures))
    assert sum(f.cancelled() for f in futures) >= 2, "what waited is forgotten"
    assert pool.call({"text": "say 5"}) == 5.0
    pool.close()


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
import graders
from guerdon.rewards.forms import Calls
from guerdon.rewards.workers import WorkerPool, pack
pool = WorkerPool(pack(graders.obey, {{}}), Calls(workers=2))
pool.call({{"text": "say 1"}})
futures = [pool.submit({{"text": "hang"}}) for _ in range(4)]
import time
while len(pool.pids()) < 2: time.sleep(0.01)
print(*pool.pids(), flush=True)
{end}
"""


@pytest.mark.parametrize("end", ["", "raise KeyboardInterrupt", "time.sleep(1000)"], ids=["exit", "error", "kill"])
def test_no_worker_outlives_the_trainer(end):
    code = SCRIPT.format(tests=str(Path(__file__).parent), end=end)
    trainer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert trainer.stdout is not None
    pids = [int(word) for word in trainer.stdout.readline().split()]
    assert len(pids) == 2
    if end.startswith("time"):
        trainer.kill()
    trainer.wait(20)
    assert eventually(lambda: all(gone(pid) for pid in pids))


def test_more_calls_than_the_backlog_wait_for_a_place():
    with WorkerPool(pack(graders.slow, {"seconds": 0.2}), Calls(workers=1), backlog=2) as pool:
        pool.call({"text": "x"})
        began = time.monotonic()
        futures = [pool.submit({"text": "x" * n}) for n in range(4)]
        assert time.monotonic() - began > 0.3, "the third and the fourth had to wait for one to be done"
        assert [f.result().result for f in futures] == [0.0, 1.0, 2.0, 3.0]


def test_a_slow_reward_scales_with_its_workers(scored):
    texts = ["x" * n for n in range(16)]
    seconds = {}
    for workers in (1, 4):
        reward = spec(graders.slow, {"seconds": 0.15}, Calls(workers=workers))
        score(batch(["warm"] * workers), [reward])
        began = time.monotonic()
        out, _ = score(batch(texts), [reward])
        seconds[workers] = time.monotonic() - began
        reward.close()
        assert out.rewards["r"].tolist() == [float(n) for n in range(16)]
    assert seconds[1] > 16 * 0.15
    assert seconds[4] < 2 * 4 * 0.15, "four times as fast, with as much again for a busy machine"


def test_functions_of_a_notebook_and_closures_reach_the_workers(scored):
    bonus = 2.5

    def closure(text):
        return len(text) + bonus

    assert scored(closure, ["ab"], workers=1)[0] == [4.5]
    assert scored(functools.partial(graders.length, factor=3.0), ["ab"], workers=1)[0] == [6.0]


def test_what_cannot_be_sent_is_refused_before_anything_runs():
    lock = threading.Lock()

    def guarded(text):
        with lock:
            return 1.0

    with pytest.raises(RecipeError, match=r"'guarded' cannot be sent to a worker .*lock.*set workers: 0"):
        spec(guarded, calls=Calls(workers=1))


def test_a_function_of_a_file_is_imported_by_the_worker(tmp_path, monkeypatch, scored):
    (tmp_path / "mine.py").write_text(
        "import threading\nLOCK = threading.Lock()\ndef marks(text):\n    with LOCK:\n        return text.count('!')\n"
    )
    monkeypatch.chdir(tmp_path)
    method = get("reward", "mine.py:marks")
    reward = Reward("r", method, {}, calls=Calls(workers=1))
    monkeypatch.chdir("/")
    out, faults = score(batch(["hi!!"]), [reward])
    reward.close()
    assert faults == []
    assert out.rewards["r"].tolist() == [2.0]


def test_a_function_that_no_worker_can_load_ends_the_run(tmp_path):
    (tmp_path / "fragile.py").write_text(
        f"import os\nif os.getpid() != {os.getpid()}: raise OSError('only at home')\ndef one(text): return 1.0\n"
    )
    reward = Reward("r", get("reward", f"{tmp_path / 'fragile.py'}:one"), {}, calls=Calls(workers=1))
    with pytest.raises(RewardError, match="a worker cannot load the reward function: OSError: only at home"):
        score(batch(["x"]), [reward])


class Remembering:
    """A reward with a memory."""

    def __call__(self, text):
        return 1.0

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


class Telling:
    """A reward that tells of itself."""

    def __init__(self, *, start: int = 0) -> None:
        self.calls = start

    def __call__(self, text):
        self.calls += 1
        return float(self.calls)

    def stats(self):
        return {"calls": self.calls}


@pytest.mark.parametrize("reward", [Remembering, Telling])
def test_what_has_a_memory_stays_in_the_trainer(reward):
    spec(reward)
    with pytest.raises(RecipeError, match="belongs to the trainer's process"):
        spec(reward, calls=Calls(workers=2))


def test_async_functions_run_together(scored):
    texts = ["x" * n for n in range(20)]
    began = time.monotonic()
    values, faults, _ = scored(graders.slow_async, texts, {"seconds": 0.2})
    assert time.monotonic() - began < 20 * 0.2 / 4
    assert faults == []
    assert values == [float(n) for n in range(20)]


def test_no_more_async_calls_at_a_time_than_asked(scored):
    now, most = 0, 0

    async def counting(text):
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.02)
        now -= 1
        return 1.0

    scored(counting, ["x"] * 12, concurrency=3)
    assert most == 3


def test_an_async_call_is_cut_off_even_if_it_clings_to_life(scored):
    async def clinging(text):
        while text == "hang":
            try:
                await asyncio.sleep(1000)
            except asyncio.CancelledError:
                continue
        return 1.0

    values, faults, _ = scored(clinging, ["hang", "fine", "hang"], timeout=0.2)
    assert faults == [(0, "timeout"), (2, "timeout")]
    assert values[1] == 1.0


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(1), asyncio.CancelledError()])
def test_an_async_function_that_raises_is_a_fault(scored, error):
    async def raising(text):
        if text == "bad":
            raise error
        return 1.0

    values, faults, _ = scored(raising, ["bad", "good"])
    assert faults == [(0, "exception")]
    assert values[1] == 1.0


def test_a_function_that_blocks_the_event_loop_is_a_fault_and_the_next_batch_is_scored(scored, monkeypatch):
    monkeypatch.setattr("guerdon.rewards.event_loop._GRACE", 0.2)

    async def blocking(text):
        if text == "block":
            time.sleep(3)
        return 1.0

    began = time.monotonic()
    _, faults, said = scored(blocking, ["fine", "block", "fine"], timeout=0.3)
    assert time.monotonic() - began < 2.5
    assert (1, "timeout") in faults
    assert "blocks the event loop" in said[-1].message
    assert scored(blocking, ["fine"], timeout=0.3)[:2] == ([1.0], [])


def test_an_async_function_works_in_a_worker_too(scored):
    assert scored(graders.slow_async, ["abc"], {"seconds": 0.0}, workers=1)[0] == [3.0]


VALUES = [
    *(1, True, 1.5, -0.0, 10**30, 10**400, None, "1.0", b"1", 1j, [1.0], [1, "x", None], {}, {"value": 1}),
    *(math.nan, math.inf, Score(2.0), Score(1.0, False, {"a": (1, 2)}), Score("x"), {"value": 2, "detail": "d"}),
    *(torch.ones(3), torch.zeros(2, 3), torch.tensor(1j), torch.tensor(4), torch.ones(0), (torch.ones(2), {"k": 1})),
]


def seen(value, n):
    """What the stage makes of a result, in place."""
    return _stage(value, n, lambda x: x)


def _stage(value, n, through):
    function = guerdon.batched(lambda text: through(value)) if n > 1 else lambda text: through(value)
    out, faults = score(batch(["t"] * n), [spec(function)])
    values = [None if math.isnan(v) else v for v in out.rewards["r"].flatten().tolist()]
    return values, [(f.row, f.kind) for f in faults], out.detail and [json.dumps(d) for d in out.detail]


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("value", VALUES, ids=lambda v: repr(v)[:20])
def test_a_result_means_the_same_after_crossing_as_json(value, n):
    assert _stage(value, n, lambda x: decode(json.loads(json.dumps(encode(x))))) == seen(value, n)


def test_a_group_and_a_batch_can_work_in_workers(scored):
    texts, group = ["a", "aaa", "aa", "a", "aaaa"], [4, 9, 4, 9, 4]
    here = scored(graders.place, texts, group=group)
    assert here[0] == [1.0, 2.0, 2.0, 1.0, 3.0]
    assert scored(graders.place, texts, group=group, workers=2)[:2] == here[:2]
    assert scored(graders.share, texts, workers=2)[0] == scored(graders.share, texts)[0]


def test_a_group_that_hangs_is_a_fault_of_its_members_only(scored):
    @guerdon.grouped
    def moody(text):
        if "hang" in text:
            time.sleep(1000)
        return [1.0] * len(text)

    values, faults, _ = scored(moody, ["hang", "x", "y", "z"], group=[0, 1, 0, 1], timeout=0.5)
    assert faults == [(0, "timeout"), (2, "timeout")]
    assert values[1] == values[3] == 1.0


@settings(max_examples=15, deadline=None)
@given(st.permutations(range(6)), st.integers(0, 6), st.sampled_from([0, 2]))
def test_rows_scored_early_are_scored_the_same(order, early, workers):
    texts = ["a" * (n + 1) for n in range(6)]
    rewards = [
        spec(graders.length, calls=Calls(workers=workers), name="each"),
        spec(graders.place, name="place"),
        spec(graders.slow_async, {"seconds": 0.0}, name="awaited"),
    ]
    whole = batch(texts, [0, 0, 0, 1, 1, 1])
    scorer = Scorer(rewards)
    for row in order[:early]:
        scorer.submit(whole[[row]], [row])
    out, faults = scorer.collect(whole)
    rewards[0].close()
    assert faults == []
    assert out.rewards["each"].tolist() == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert out.rewards["place"].tolist() == [1.0, 2.0, 3.0, 1.0, 2.0, 3.0]
    assert out.rewards["awaited"].tolist() == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]


def test_rows_are_scored_while_others_are_still_sampled():
    reward = spec(graders.slow, {"seconds": 0.3}, Calls(workers=2))
    whole = batch(["x"] * 4)
    score(whole[:2], [reward])
    scorer = Scorer([reward])
    scorer.submit(whole[:2], [0, 1])
    time.sleep(0.35)
    began = time.monotonic()
    scorer.collect(whole)
    assert time.monotonic() - began < 0.55, "half of the work was done before"
    reward.close()


def test_an_interrupted_collection_ends_its_workers():
    hanging = spec(graders.obey, calls=Calls(workers=1), name="hanging")
    (pool,) = hanging._pools.values()

    def interrupt(text):
        assert eventually(pool.pids)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score(batch(["hang"]), [hanging, spec(interrupt, name="interrupt")])
    assert pool.pids() == []


# Recipes --------------------------------------------------------------------------------------------------

SMALL = {
    "task": {"name": "reasoning_gym", "dataset": "spell_backward", "config": {"min_word_len": 3, "max_word_len": 4}},
    "policy": {"name": "tiny_lm", "width": 16, "layers": 1, "heads": 2},
    "sampling": {"prompts": 16, "group_size": 8, "max_new_tokens": 5},
    "evaluation": {"problems": 4},
}


def plan_of(*rewards):
    return make_plan(load_recipe({**SMALL, "rewards": list(rewards)}))


def test_a_recipe_says_where_a_reward_works():
    plan = plan_of(
        {"name": graders.length, "factor": 2.0, "workers": 3, "timeout": 2, "memory_mb": 100, "retries": 1},
        {"name": graders.slow_async, "concurrency": 5},
        {"name": "math_verify", "timeout": 2.0, "label": "alone"},
        {"name": "math_verify", "timeout": 2.0, "workers": 4},
    )
    pooled, awaited, alone, many = plan.rewards
    assert pooled.calls == Calls(3, 2.0, 100, 1)
    assert pooled.options == {"factor": 2.0}
    assert awaited.calls == Calls(concurrency=5)
    assert (alone.pooled, alone.options) == (False, {"timeout": 2.0})
    assert (many.pooled, many.calls.timeout) == (True, 2.0)


def test_math_verify_in_workers_is_math_verify():
    method = get("reward", "math_verify")
    reward = Reward("r", method, method.validate({"timeout": 3.0}), calls=Calls(workers=2, timeout=3.0))
    rows = batch(["$\\frac12$", "$3$", "$9^{9^{9^{9}}}$"], answer=["0.5", "4", "1"])
    out, faults = score(rows, [reward])
    reward.close()
    assert out.rewards["r"].tolist()[:2] == [1.0, 0.0]
    assert [(f.row, f.kind) for f in faults] == [(2, "timeout")]


def test_the_scorer_of_a_task_can_work_in_workers_too():
    plan = plan_of({"name": "task", "workers": 2})
    parts = build(plan)
    (reward,) = parts.rewards
    problems = parts.task.train_batch(4, 0)
    texts = [str(p.answer) if i % 2 else "wrong" for i, p in enumerate(problems)]
    rows = batch(texts, answer=[p.answer for p in problems], metadata=[p.metadata for p in problems])
    out, faults = score(rows, [reward])
    reward.close()
    assert faults == []
    assert out.rewards["task"].tolist() == [0.0, 1.0, 0.0, 1.0]


def test_what_an_environment_scores_cannot_be_moved():
    control = {"task": {"name": "gymnasium", "env": "CartPole-v1"}, "policy": "control"}
    recipe = {**control, "rewards": [{"name": "task", "workers": 2}], "sampling": {"prompts": 1}}
    with pytest.raises(RecipeError, match="no call of it can be moved or limited"):
        build(make_plan(load_recipe(recipe)))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"workers": -1}, "workers"),
        ({"timeout": 0}, "timeout"),
        ({"memory_mb": 0}, "memory_mb"),
        ({"retries": -1}, "retries"),
        ({"concurrency": 4}, "'length' is no async function"),
    ],
)
def test_a_recipe_that_asks_for_what_cannot_be_is_refused(keys, message):
    with pytest.raises(RecipeError, match=message):
        plan_of({"name": graders.length, **keys})


def test_a_thousand_faults_of_all_kinds_lose_no_rollout_and_leave_no_silent_zero(tmp_path):
    calls = {"workers": 4, "timeout": 0.25, "memory_mb": 300}
    salts = {"dropped": 1, "floored": 2, "watched": 3}
    rewards = [
        {"name": graders.faulty, "salt": 1, "label": "dropped", **calls},
        {"name": graders.faulty, "salt": 2, "label": "floored", "on_fault": "floor", "floor": -7.0, **calls},
        {"name": graders.faulty, "salt": 3, "label": "watched", "watch": True, **calls},
    ]
    recipe = {**SMALL, "rewards": rewards, "training": {"steps": 6}, "logging": {"rollouts_every": 1}}
    recipe |= {"runs_dir": str(tmp_path), "name": "faults", "checkpoint": {"every": 100}}
    result = guerdon.train(recipe, progress=Progress(quiet=True))
    folder = RunFolder.open(result.run)
    rows, metrics = folder.rollouts().to_pylist(), folder.metrics()
    assert len(rows) == 6 * 16 * 8, "no rollout is lost"

    expected = {}
    for row in rows:
        where = (row["step"], row["row"])
        for label, salt in salts.items():
            kind = graders.fate(row["text"], row["task_id"], row["step"], salt)
            column = f"{'watch' if label == 'watched' else 'reward'}/{label}"
            if kind is None:
                assert row[column] == pytest.approx(graders.worth(row["text"]))
            else:
                expected[*where, label] = graders.EXPECTED[graders.KINDS.index(kind)]
                assert row[column] == -7.0 if label == "floored" else math.isnan(row[column])
                assert f"{label}: {expected[*where, label]} on sample {row['row']}: " in row["fault"]
        assert (row["reward"] is None) == ((*where, "dropped") in expected), "only a dropped sample has no reward"
        assert 0.0 not in [row["reward/dropped"], row["reward/floored"], row["watch/watched"]]

    told = {(f["step"], f["row"], f["reward"]): f["kind"] for f in folder.faults()}
    assert len(folder.faults()) == len(told) == len(expected) >= 1000
    assert told == expected
    kinds = list(expected.values())
    assert set(kinds) == set(graders.EXPECTED)
    for kind in set(kinds):
        assert sum(x or 0 for x in metrics[f"faults/{kind}"]) == kinds.count(kind)
    assert sum(metrics["faults"]) == len(expected)
    page = folder.report_path.read_text()
    assert all(f"<td>{kind}</td>" in page for kind in kinds)


def test_an_error_among_the_results_of_a_worker_is_its_samples_fault(scored):
    values, kinds, faults = scored(graders.partly_failing, ["a", "b?", "ccc"], workers=1)
    assert kinds == [(1, "exception")]
    assert faults[0].message == "ConnectionError: nobody answers"
    assert (values[0], values[2]) == (1.0, 3.0)
