import pytest
import torch

from guerdon.errors import RecipeError
from guerdon.policies.language_sampling import LanguageSampling
from guerdon.policies.likelihoods import prompt_logp
from guerdon.policies.tiny_lm import TinyLM, build_tokenizer
from guerdon.tasks.base import Problem, Starts, Task


class Copying(Task):
    """Answer with the prompt."""

    kind = "language"

    def train_batch(self, n, seed):
        return [Problem(i, prompt=p, answer=p) for i, p in enumerate(["ab", "b", "abba", "bbb"] * n)][:n]

    def eval_problems(self, n):
        return self.train_batch(n, 0)


@pytest.fixture(scope="module", params=[False, True], ids=["actor", "actor-critic"])
def policy(request):
    torch.manual_seed(0)
    policy = TinyLM(Copying(), width=16, layers=2, heads=2, value_head=request.param)
    with torch.no_grad():
        policy.module["model"].embed.weight.mul_(10)
        if policy.value is not None:
            policy.value.weight.normal_(generator=torch.Generator().manual_seed(1))
    return policy


def sampled(policy, **options):
    starts = Starts.repeat(Copying().train_batch(4, 0), 3, version=5)
    with torch.no_grad():
        return policy.sample(starts, LanguageSampling(max_new_tokens=6, **options), seed=11)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_evaluation_agrees_with_what_was_sampled(policy, temperature):
    rollouts = sampled(policy, temperature=temperature)
    evaluation = policy.evaluate(rollouts)
    assert torch.allclose(evaluation.logp, rollouts.old_logp, atol=1e-5)
    assert torch.allclose(evaluation.entropy, rollouts.entropy, atol=1e-5)
    assert (evaluation.value_prediction is None) == (policy.value is None)


def test_rollouts_carry_what_the_policy_says_it_supplies(policy):
    rollouts = sampled(policy)
    supplied = TinyLM.supplied_fields({"value_head": policy.value is not None})
    for name in supplied - {"value_prediction", "values", "prompt_logp", "answer_logp", "marks", "features", "ref_kl"}:
        assert getattr(rollouts, name) is not None
    assert rollouts.version.tolist() == [5] * 12
    assert rollouts.group.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert (rollouts.done ^ rollouts.truncated).all()
    ended = (rollouts.tokens == policy.eos).any(dim=1)
    assert torch.equal(ended, rollouts.done)
    for row, text in enumerate(rollouts.text):
        pieces = policy.token_text(rollouts)[row]
        assert len(pieces) == int(rollouts.mask[row].sum())
        assert "".join(p for p in pieces if p not in ("<eos>", "<pad>", "<unk>", "<answer>")) == text


def test_prompt_tokens_have_the_likelihood_that_the_bare_model_gives(policy):
    rollouts = sampled(policy, temperature=0.7)
    with torch.no_grad():
        seen = prompt_logp(policy, rollouts)
        assert seen.shape == rollouts.payload["prompt_tokens"].shape
        for row, prompt in zip(seen, rollouts.prompt, strict=True):
            ids = torch.tensor([policy.encode_prompt(prompt)])
            scores = policy.model(ids)[0].log_softmax(dim=-1)
            wanted = scores[:-1].gather(1, ids[0, 1:].unsqueeze(1)).squeeze(1)
            assert torch.allclose(row[~row.isnan()], wanted, atol=1e-5)
            assert torch.equal(row.isnan().int(), row.isnan().int().sort(descending=True).values), "only at the left"


def test_a_prompt_of_one_token_follows_nothing(policy):
    class Silent(Copying):
        def train_batch(self, n, seed):
            return [Problem(0, prompt="", answer="a")] * n

    starts = Starts.repeat(Silent().train_batch(1, 0), 2)
    with torch.no_grad():
        rollouts = policy.sample(starts, LanguageSampling(max_new_tokens=2), seed=1)
        assert prompt_logp(policy, rollouts).isnan().all()


def test_evaluation_does_not_depend_on_the_rest_of_the_batch(policy):
    rollouts = sampled(policy)
    whole = policy.evaluate(rollouts)
    rows = torch.tensor([7, 2])
    part = policy.evaluate(rollouts[rows])
    assert torch.allclose(part.logp, whole.logp[rows], atol=1e-5)
    if policy.value is not None:
        assert torch.allclose(part.value_prediction, whole.value_prediction[rows], atol=1e-5)


def test_logits_give_the_log_probabilities(policy):
    rollouts = sampled(policy)
    evaluation = policy.evaluate(rollouts, logits=True)
    picked = evaluation.logits.log_softmax(-1).gather(2, rollouts.tokens.unsqueeze(2)).squeeze(2)
    assert torch.allclose(picked[rollouts.mask], evaluation.logp[rollouts.mask], atol=1e-5)


def test_gradient_is_that_of_unpadded_sequences(policy):
    rollouts = sampled(policy)
    weight = torch.randn(rollouts.mask.shape, generator=torch.Generator().manual_seed(3))
    parameters = list(policy.module["model"].parameters())
    got = torch.autograd.grad((policy.evaluate(rollouts).logp * weight).sum(), parameters)
    total = 0.0
    for row in range(len(rollouts)):
        prompt = policy.encode_prompt(rollouts.prompt[row])
        tokens = rollouts.tokens[row][rollouts.mask[row]]
        logits = policy.module["model"](torch.tensor([prompt + tokens.tolist()]))[0, len(prompt) - 1 : -1]
        logp = logits.log_softmax(-1).gather(1, tokens.unsqueeze(1)).squeeze(1)
        total = total + (logp * weight[row][rollouts.mask[row]]).sum()
    for a, b in zip(got, torch.autograd.grad(total, parameters), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_supervised_loss_is_the_cross_entropy_of_the_answers(policy):
    problems = Copying().train_batch(4, 0)
    losses = []
    for problem in problems:
        prompt, answer = policy.encode_prompt(problem.prompt), policy.encode_answer(problem.answer)
        with torch.no_grad():
            logits = policy.module["model"](torch.tensor([prompt + answer]))[0, len(prompt) - 1 : -1]
        losses += torch.nn.functional.cross_entropy(logits, torch.tensor(answer), reduction="none").tolist()
    assert policy.supervised_loss(problems, 0).item() == pytest.approx(sum(losses) / len(losses), abs=1e-5)


def test_problems_without_answers_cannot_be_imitated(policy):
    with pytest.raises(RecipeError, match="problems have none"):
        policy.supervised_loss([Problem(0, prompt="ab")], 0)


def test_snapshots_act_inside_the_block_only(policy):
    rollouts = sampled(policy)
    before = policy.evaluate(rollouts).logp.detach()
    policy.snapshot("ref")
    with torch.no_grad():
        for p in policy.trainable().values():
            p.add_(0.05)
    moved = policy.evaluate(rollouts).logp.detach()
    with policy.using("ref"):
        assert torch.equal(policy.evaluate(rollouts).logp.detach(), before)
    assert torch.equal(policy.evaluate(rollouts).logp.detach(), moved)
    saved = {key: value.clone() for key, value in policy.state_dict().items()}
    with torch.no_grad():
        for p in policy.trainable().values():
            p.sub_(0.05)
    policy.load_state_dict(saved)
    assert torch.equal(policy.evaluate(rollouts).logp.detach(), moved)
    with policy.using("ref"):
        assert torch.equal(policy.evaluate(rollouts).logp.detach(), before)


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_tokenizers_give_texts_back(kind):
    texts = ["12 + 34 = 46", "Spell: Ünïcode\n\ttabs  spaces", "x"]
    tokenizer = build_tokenizer(texts, kind, vocab_size=300)
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text
    assert len(tokenizer("123", add_special_tokens=False)["input_ids"]) == 3


def test_width_must_fit_the_heads():
    with pytest.raises(RecipeError, match="width 20 is not a multiple of 2 \\* heads = 8; use 16"):
        TinyLM(Copying(), width=20, heads=4)


def replayed(policy, prompts, answers, temperature=1.0, **settings):
    problems = [Problem(i, prompt, answer) for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))]
    starts = Starts(problems, torch.arange(len(problems)), version=3)
    actions = [policy.encode_answer(answer) for answer in answers]
    return policy.replay(starts, actions, LanguageSampling(max_new_tokens=6, temperature=temperature), **settings)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_joined_batch_has_the_likelihoods_of_its_parts(policy, temperature):
    parts = [
        replayed(policy, ["a"], ["b"], temperature),
        sampled(policy, temperature=temperature),
        replayed(policy, ["abbaabba", "b"], ["abbabbab", "a"], temperature),
    ]
    with torch.no_grad():
        whole = policy.evaluate(policy.join(parts))
        row = 0
        for part in parts:
            alone, width = policy.evaluate(part), part.mask.shape[1]
            rows = slice(row, row := row + len(part))
            assert torch.allclose(whole.logp[rows, :width], alone.logp, atol=1e-5)
            assert torch.allclose(whole.entropy[rows, :width], alone.entropy, atol=1e-5)
            assert (whole.logp[rows, width:] == 0).all()
            if policy.value is not None:
                assert torch.allclose(whole.value_prediction[rows, :width], alone.value_prediction, atol=1e-5)
    assert row == len(policy.join(parts)) == 15


def test_replayed_answers_are_external_and_as_likely_as_they_are(policy):
    rollouts = replayed(policy, ["ab", "b"], ["abba", "b"], temperature=0.7)
    assert rollouts.text == ["abba", "b"]
    assert torch.equal(rollouts.external, rollouts.mask)
    assert rollouts.mask.sum(dim=1).tolist() == [5, 2]
    assert rollouts.done.all()
    assert not rollouts.truncated.any()
    assert rollouts.version.tolist() == [3, 3]
    with torch.no_grad():
        now = policy.evaluate(rollouts)
    assert torch.allclose(rollouts.old_logp, now.logp, atol=1e-6)
    assert (rollouts.old_logp[rollouts.mask] < 0).all()
    known = replayed(policy, ["ab", "b"], ["abba", "b"], logp=[[-1, -2, -3, -4, -5], [-6, -7]])
    assert known.old_logp.tolist() == [[-1, -2, -3, -4, -5], [-6, -7, 0, 0, 0]]


def test_an_answer_without_an_end_was_cut(policy):
    starts = Starts([Problem(0, prompt="ab")], torch.zeros(1, dtype=torch.int64))
    rollouts = policy.replay(starts, [policy.encode_answer("ab")[:-1]], LanguageSampling())
    assert rollouts.truncated.tolist() == [True]
    assert rollouts.done.tolist() == [False]


def test_branches_keep_what_they_share_and_write_the_rest_anew(policy):
    rollouts = sampled(policy)
    rows, at = [0, 0, 5, 7], [1, 0, 2, 1]
    at = [min(n, int(rollouts.mask[row].sum()) - 1) for row, n in zip(rows, at, strict=True)]
    branches = policy.branch(rollouts, rows, at, LanguageSampling(max_new_tokens=6), seed=4)
    assert branches.parent.tolist() == rows
    assert branches.branch_at.tolist() == at
    assert torch.equal(branches.group, rollouts.group[rows])
    for branch, (row, kept) in enumerate(zip(rows, at, strict=True)):
        assert torch.equal(branches.tokens[branch, :kept], rollouts.tokens[row, :kept])
        assert torch.equal(branches.old_logp[branch, :kept], rollouts.old_logp[row, :kept])
        assert kept < int(branches.mask[branch].sum()) <= 6
        assert branches.prompt[branch] == rollouts.prompt[row]
        assert branches.answer[branch] == rollouts.answer[row]
    evaluation = policy.evaluate(branches)
    assert torch.allclose(evaluation.logp, branches.old_logp, atol=1e-5)
    assert torch.allclose(evaluation.entropy, branches.entropy, atol=1e-5)
    assert not torch.equal(branches.tokens[1], rollouts.tokens[0])  # the same start, other draws
    again = policy.branch(rollouts, rows, at, LanguageSampling(max_new_tokens=6), seed=4)
    assert torch.equal(again.tokens, branches.tokens)
    both = policy.join([rollouts, branches])
    assert torch.allclose(policy.evaluate(both).logp, both.old_logp, atol=1e-5)


def test_scores_of_continuations_are_their_log_probabilities(policy):
    texts = ["ab", "abba", "b", "ab"]
    logp, mask = policy.score("bba", texts)
    assert mask.sum(dim=1).tolist() == [2, 4, 1, 2]
    prompt = policy.encode_prompt("bba")
    for row, text in enumerate(texts):
        tokens = policy.tokenizer(text, add_special_tokens=False)["input_ids"]
        for t, token in enumerate(tokens):
            with torch.no_grad():
                log_p = policy.model(torch.tensor([[*prompt, *tokens[:t]]]))[0, -1].log_softmax(0)
            assert logp[row, t].item() == pytest.approx(log_p[token].item(), abs=1e-5)
    assert (logp[~mask] == 0).all()


def test_a_completion_ends_with_a_stop_string(policy):
    rollouts = sampled(policy, stop=["a"])
    assert any(rollouts.done)
    for text, done in zip(rollouts.text, rollouts.done.tolist(), strict=True):
        assert "a" not in text[:-1]
        assert done or "a" not in text


def test_reading_in_parts_changes_neither_values_nor_gradients(policy):
    rollouts = sampled(policy)

    def gradient():
        evaluation = policy.evaluate(rollouts)
        loss = (evaluation.logp * rollouts.mask).sum() + evaluation.entropy.square().sum()
        return evaluation.logp.detach(), torch.autograd.grad(loss, list(policy.model.parameters()))

    whole, whole_gradient = gradient()
    policy.max_tokens = 12
    try:
        parts, parts_gradient = gradient()
    finally:
        policy.max_tokens = None
    assert torch.allclose(whole, parts, atol=1e-6)
    for a, b in zip(whole_gradient, parts_gradient, strict=True):
        assert torch.allclose(a, b, atol=1e-5, rtol=1e-4)
