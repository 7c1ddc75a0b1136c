import pytest
import torch
from torch.nn.functional import cross_entropy

from guerdon.engine.generate import Completions, GenerationOptions, SamplingError
from guerdon.engine.tools import Tool, rollout_with_tool
from guerdon.errors import RecipeError
from guerdon.objectives import kl, ppo_clip
from guerdon.policies.language_sampling import LanguageSampling
from guerdon.policies.tiny_lm import TinyLM
from guerdon.tasks.base import Problem, Starts, Task

MARKS = {"opening": "[", "closing": "]", "insert_opening": "(", "insert_closing": ")"}
EOS = "."


def shout(queries):
    return [query.upper() for query in queries]


def never(queries):
    raise AssertionError(f"asked {queries}")


class Letters(Task):
    """Prompts of letters; the tool says them louder."""

    kind = "language"

    def train_batch(self, n, seed):
        return [Problem(i, prompt=p, answer=p) for i, p in enumerate(["ab", "b", "ba", "aab"] * n)][:n]

    def eval_problems(self, n):
        return self.train_batch(n, 0)

    def corpus(self):
        yield "abAB[]()"

    def respond(self, queries):
        return shout(queries)


class Script:
    """Writes what it is told, one character per token, and remembers what it was asked for."""

    def __init__(self, *rounds):
        self.rounds, self.calls = list(rounds), []

    def __call__(self, prefixes, settings, *, seed, rows, budgets):
        self.calls.append({"prefixes": ["".join(map(chr, p)) for p in prefixes], "seed": seed, "rows": list(rows)})
        self.calls[-1] |= {"budgets": list(budgets), "stop": settings.stop}
        texts = [text[:budget] for text, budget in zip(self.rounds.pop(0), budgets, strict=True)]
        out = Completions.blank(len(texts), max(map(len, texts)), 0, 0)
        for row, text in enumerate(texts):
            out.tokens[row, : len(text)] = torch.tensor([ord(c) for c in text])
            out.mask[row, : len(text)] = True
            out.logp[row, : len(text)] = -torch.arange(1.0, len(text) + 1)
            out.finished[row] = text.endswith((EOS, "]", "!"))
        return out


def encode(text):
    return [ord(c) for c in text]


def decode(rows):
    return ["".join(chr(t) for t in row if t) for row in rows]


def told(script, *, prompts=("p",), budget=100, respond=shout, stop=("!",), **options):
    tool = Tool(name=respond, **{**MARKS, **options})
    settings = GenerationOptions(max_new_tokens=budget, stop=stop, stop_tokens=(ord(EOS),))
    return rollout_with_tool(
        script, [encode(p) for p in prompts], settings, tool, seed=5, pad=0, encode=encode, decode=decode
    )


def test_a_query_is_answered_behind_it_and_the_rest_of_the_budget_goes_on():
    script = Script(["so [ab]"], ["then [b]"], ["ab."])
    out = told(script)
    assert decode(out.tokens.tolist()) == ["so [ab](AB)then [b](B)ab."]
    assert "".join("_x"[m] for m in out.mask[0]) == "xxxxxxx____xxxxxxxx___xxx"
    assert out.present.all()
    assert out.turn[0].tolist() == [0] * 7 + [-1] * 4 + [1] * 8 + [-1] * 3 + [2] * 3
    assert out.logp[0].tolist() == [-1, -2, -3, -4, -5, -6, -7, *[0] * 4, *range(-1, -9, -1), *[0] * 3, -1, -2, -3]
    assert out.finished.tolist() == [True]
    assert [call["prefixes"] for call in script.calls] == [["p"], ["pso [ab](AB)"], ["pso [ab](AB)then [b](B)"]]
    assert [call["budgets"] for call in script.calls] == [[100], [93], [85]]
    assert all(call["stop"] == ("!", "]") for call in script.calls)
    assert len({call["seed"] for call in script.calls}) == 3
    assert script.calls[0]["seed"] == 5


def test_rows_that_ended_leave_and_the_others_keep_their_identity():
    asked = []

    def respond(queries):
        asked.append(queries)
        return shout(queries)

    script = Script(["x.", "[a]", "yy.", "[b]"], ["c.", "[d]"], ["e."])
    out = told(script, prompts=("1", "2", "3", "4"), respond=respond)
    assert decode(out.tokens.tolist()) == ["x.", "[a](A)c.", "yy.", "[b](B)[d](D)e."]
    assert [call["rows"] for call in script.calls] == [[0, 1, 2, 3], [1, 3], [3]]
    assert asked == [["a", "b"], ["d"]]
    assert out.present.sum(dim=1).tolist() == [2, 8, 3, 14]
    assert out.mask.sum(dim=1).tolist() == [2, 5, 3, 8]


@pytest.mark.parametrize("text", ["[]", "[ \n]", "no opening]", "x]"])
def test_nothing_is_inserted_where_nothing_is_asked(text):
    script = Script([text], ["a."])
    out = told(script, respond=never)
    assert decode(out.tokens.tolist()) == [f"{text}a."]
    assert out.mask.all()
    assert out.turn.unique().tolist() == [0]
    assert out.finished.tolist() == [True]


def test_the_query_is_what_follows_the_last_opening_mark():
    assert decode(told(Script(["[a [ b ]"], ["."])).tokens.tolist()) == ["[a [ b ](B)."]
    # An opening mark before an earlier closing mark opens nothing any more.
    assert decode(told(Script(["[ ]"], ["b]"], ["."])).tokens.tolist()) == ["[ ]b]."]


def test_a_completion_that_asks_too_often_is_cut():
    out = told(Script(["[a]"], ["[b]"], ["[c]"]), max_calls=2)
    assert decode(out.tokens.tolist()) == ["[a](A)[b](B)[c]"]
    assert out.finished.tolist() == [False]
    assert told(Script(["[a]"], ["[b]"], ["c."]), max_calls=2).finished.tolist() == [True]


def test_empty_queries_are_no_calls():
    script = Script(["[a]"], ["[]"], ["[]"], ["."])
    assert told(script, max_calls=1).finished.tolist() == [True]


def test_the_budget_counts_what_the_policy_writes_alone():
    out = told(Script(["[ab]"], ["abcdef"]), budget=7)
    assert decode(out.tokens.tolist()) == ["[ab](AB)abc"]
    assert out.finished.tolist() == [False]
    spent = told(Script(["[ab]"]), budget=4, respond=never)
    assert decode(spent.tokens.tolist()) == ["[ab]"], "an answer that nothing could follow is not asked for"
    assert spent.finished.tolist() == [False]


def test_answers_are_cut_to_their_length_and_rid_of_marks():
    out = told(Script(["[a]"], ["."]), respond=lambda queries: ["abcdef"], max_inserted=3)
    assert decode(out.tokens.tolist()) == ["[a](abc)."]
    nested = told(Script(["[a]"], ["."]), respond=lambda queries: ["x)[b](y"])
    assert decode(nested.tokens.tolist()) == ["[a](xby)."]
    marks = {"opening": "<q>", "closing": "</q>", "insert_opening": "<d>", "insert_closing": "</d>"}
    assert Tool(name=lambda queries: ["1<</d>/d>2"], **marks).ask(["x"]) == ["12"]


def test_other_stop_strings_end_a_completion():
    out = told(Script(["a!", "[b]"], ["c!"]), prompts=("1", "2"))
    assert decode(out.tokens.tolist()) == ["a!", "[b](B)c!"]
    assert out.finished.tolist() == [True, True]


def test_completions_are_handed_over_as_they_end():
    seen = []
    script = Script(["x.", "[a]", "cut"], ["b."])
    tool = Tool(name=shout, **MARKS)
    rollout_with_tool(
        script,
        [[1], [2], [3]],
        GenerationOptions(max_new_tokens=9, stop_tokens=(ord(EOS),)),
        tool,
        seed=0,
        pad=0,
        encode=encode,
        decode=decode,
        ended=lambda rows, out: seen.append((rows.tolist(), [decode(out.tokens.tolist())[r] for r in rows.tolist()])),
    )
    assert seen == [([0, 2], ["x.", "cut"]), ([1], ["[a](A)b."])]


@pytest.mark.parametrize(
    ("respond", "message"),
    [
        (lambda queries: ["one", "two"], "2 answers"),
        (lambda queries: [None], "1 answers"),
        (lambda queries: 1 / 0, "ZeroDivisionError"),
    ],
)
def test_a_tool_that_fails_says_how(respond, message):
    with pytest.raises(SamplingError, match=message):
        told(Script(["[a]"]), respond=respond)


def test_a_tool_is_the_tasks_a_function_or_an_import_path():
    task = Letters()
    assert Tool(**MARKS).bound_to(task).ask(["a"]) == ["A"]
    assert Tool(name="string:capwords").bound_to(task).name("ab") == "Ab"
    task.respond = None
    with pytest.raises(RecipeError, match="has no method 'respond'"):
        Tool(**MARKS).bound_to(task)
    with pytest.raises(RecipeError, match="want a function"):
        Tool(name="string:digits").bound_to(task)
    with pytest.raises(ValueError, match="four different"):
        Tool(opening="|", closing="|")


# The real policy --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def policy():
    torch.manual_seed(0)
    policy = TinyLM(Letters(), width=16, layers=2, heads=2)
    with torch.no_grad():
        policy.module["model"].embed.weight.mul_(4)
    return policy


def options(**changes):
    return LanguageSampling(max_new_tokens=80, tool=Tool(**MARKS, **changes)).bound_to(Letters())


def sampled(policy, problems=4, **changes):
    starts = Starts.repeat(Letters().train_batch(problems, 0), 12)
    with torch.no_grad():
        return policy.sample(starts, options(**changes), seed=3)


def inserted(rollouts):
    return rollouts.payload["attention"][:, rollouts.payload["prompt_tokens"].shape[1] :] & ~rollouts.mask


def test_text_holds_what_the_policy_wrote_and_what_was_inserted(policy):
    rollouts = sampled(policy)
    foreign = inserted(rollouts)
    assert foreign.any(dim=1).sum() >= 10, "the model asks often enough for the tests to mean something"
    assert int(rollouts.turn.max()) >= 2
    for row, text in enumerate(rollouts.text):
        read = ["", ""]  # what the policy wrote, and what was inserted, as the text has it in turn
        rest = text
        for column in (rollouts.mask | foreign)[row].nonzero().flatten().tolist():
            piece = policy.tokenizer.decode(rollouts.tokens[row, column : column + 1], skip_special_tokens=True)
            assert rest.startswith(piece)
            rest = rest.removeprefix(piece)
            read[int(foreign[row, column])] += piece
        assert rest == ""
        assert read[1].count("(") == read[1].count(")") == int(rollouts.turn[row].max())
        assert read[0].count("]") >= int(rollouts.turn[row].max())


def test_every_answer_stands_behind_its_query(policy):
    rollouts = sampled(policy)
    for row in range(len(rollouts)):
        at = inserted(rollouts)[row].nonzero().flatten().tolist()
        starts = [c for c in at if c - 1 not in at]
        assert len(starts) == int(rollouts.turn[row].max())
        for start in starts:
            before, behind = (
                policy.tokenizer.decode(part, skip_special_tokens=True)
                for part in (rollouts.tokens[row, :start], rollouts.tokens[row, start:])
            )
            assert before.endswith("]")
            query = before[:-1].rpartition("[")[2].strip()
            answer = "".join(c for c in query.upper() if c not in "[]()")
            assert behind.startswith(f"({answer})")


def test_evaluation_agrees_with_a_plain_forward_pass(policy):
    rollouts = sampled(policy)
    evaluation = policy.evaluate(rollouts)
    assert torch.allclose(evaluation.logp, rollouts.old_logp, atol=1e-5)
    assert torch.allclose(evaluation.entropy, rollouts.entropy, atol=1e-5)
    present = rollouts.mask | inserted(rollouts)
    for row in range(len(rollouts)):
        prompt = policy.encode_prompt(rollouts.prompt[row])
        tokens = rollouts.tokens[row][present[row]]
        scores = policy.model(torch.tensor([prompt + tokens.tolist()]))[0, len(prompt) - 1 : -1].log_softmax(-1)
        naive = scores.gather(1, tokens.unsqueeze(1)).squeeze(1)
        own = rollouts.mask[row][present[row]]
        assert torch.allclose(naive[own], evaluation.logp[row][rollouts.mask[row]], atol=1e-5)
        assert (evaluation.logp[row][~rollouts.mask[row]] == 0).all()


def test_inserted_tokens_have_no_gradient(policy):
    rollouts = sampled(policy)
    logp = torch.full(rollouts.mask.shape, -1.3, requires_grad=True)
    advantage = torch.randn(rollouts.mask.shape, generator=torch.Generator().manual_seed(0))
    ref_logp = torch.full(rollouts.mask.shape, -2.0)
    loss = (
        ppo_clip(logp, rollouts.old_logp, advantage, rollouts.mask)[0] + kl(logp, ref_logp, rollouts.mask, beta=0.1)[0]
    )
    (gradient,) = torch.autograd.grad(loss, logp)
    assert (gradient[inserted(rollouts)] == 0).all()
    assert (gradient[rollouts.mask] != 0).any()
    assert (rollouts.old_logp[inserted(rollouts)] == 0).all()
    assert (rollouts.turn[inserted(rollouts)] == -1).all()


def test_what_a_completion_draws_depends_on_its_own_row_alone(policy):
    whole, part = sampled(policy), sampled(policy, problems=2)
    assert part.text == whole.text[:24]
    settings = GenerationOptions(max_new_tokens=80, stop_tokens=policy.stop_tokens())
    prompts = [policy.encode_prompt(p) for p in ("ab", "b", "ba", "aab") * 4]
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0)).tolist()

    def write(rows):
        return rollout_with_tool(
            policy.write,
            [prompts[row] for row in rows],
            settings,
            options().tool,
            seed=8,
            pad=policy.pad,
            encode=policy.encode,
            decode=policy.decode,
            rows=rows,
        )

    straight, shuffled = write(range(16)), write(order)
    assert straight.turn.max() > 0
    for place, row in enumerate(order):
        width = int(straight.present[row].sum())
        assert torch.equal(straight.tokens[row, :width], shuffled.tokens[place, :width])
        assert torch.equal(straight.mask[row, :width], shuffled.mask[place, :width])
        assert torch.allclose(straight.logp[row, :width], shuffled.logp[place, :width], atol=1e-5)
        assert not shuffled.present[place, width:].any()


def test_a_completion_that_never_asks_is_the_one_without_a_tool(policy):
    with_tool = sampled(policy)
    starts = Starts.repeat(Letters().train_batch(4, 0), 12)
    with torch.no_grad():
        plain = policy.sample(starts, LanguageSampling(max_new_tokens=80), seed=3)
    silent = [row for row, text in enumerate(plain.text) if "]" not in text]
    assert silent
    assert [with_tool.text[row] for row in silent] == [plain.text[row] for row in silent]


def test_done_and_truncated_follow_the_end(policy):
    rollouts = sampled(policy, max_calls=1)
    last = [int(rollouts.tokens[row][rollouts.mask[row]][-1]) for row in range(len(rollouts))]
    assert rollouts.done.tolist() == [token == policy.eos for token in last]
    assert torch.equal(rollouts.truncated, ~rollouts.done)
    assert int(rollouts.turn.max()) == 1
    assert rollouts.mask.sum(dim=1).max() <= 80


def test_batches_with_insertions_are_joined(policy):
    parts = [sampled(policy), sampled(policy, problems=1)]
    joined = policy.join(parts)
    assert torch.allclose(policy.evaluate(joined).logp[:48, : parts[0].mask.shape[1]], parts[0].old_logp, atol=1e-5)
    assert torch.allclose(policy.evaluate(joined).logp[48:, : parts[1].mask.shape[1]], parts[1].old_logp, atol=1e-5)


def test_marks_that_the_tokenizer_lacks_are_refused(policy):
    starts = Starts.repeat(Letters().train_batch(1, 0), 2)
    unknown = LanguageSampling(tool=Tool(name=shout))
    with pytest.raises(RecipeError, match="begin_of_query"):
        policy.sample(starts, unknown, seed=0)


def test_completions_with_a_tool_are_not_branched(policy):
    rollouts = sampled(policy)
    with pytest.raises(RecipeError, match="branched"):
        policy.branch(rollouts, [0], [1], options(), seed=0)


def test_evaluation_keeps_the_tool(policy):
    kept = policy.evaluation_options(options(max_calls=3))
    assert kept.tool.max_calls == 3
    assert kept.max_new_tokens == 80


def test_a_demonstration_is_imitated_without_what_the_tool_says(policy):
    parameters = list(policy.model.parameters())
    problems = [Problem(0, "ab", "b", demonstration=("[a]", "(A)", "b")), Problem(1, "b", "ab")]
    got = policy.supervised_loss(problems, seed=0)
    losses = []
    for prompt, pieces in (("ab", ["[a]", "(A)", "b"]), ("b", ["ab"])):
        ids = policy.encode_prompt(prompt)
        begin = len(ids)
        own = []
        for place, piece in enumerate(pieces):
            tokens = policy.encode(piece) + ([policy.eos] if place == len(pieces) - 1 else [])
            own += [place % 2 == 0] * len(tokens)
            ids += tokens
        scores = policy.model(torch.tensor([ids]))[0, begin - 1 : -1]
        losses.append(cross_entropy(scores, torch.tensor(ids[begin:]), reduction="none")[torch.tensor(own)])
    wanted = torch.cat(losses)
    assert len(wanted) == 3 + 2 + 3
    assert torch.allclose(got, wanted.mean(), atol=1e-5)
    for a, b in zip(torch.autograd.grad(got, parameters), torch.autograd.grad(wanted.mean(), parameters), strict=True):
        assert torch.allclose(a, b, atol=1e-5)
