import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.engine.filters import keep_likely
from guerdon.engine.generate import GenerationOptions, SamplingError, generate
from guerdon.engine.noise import RowUniforms
from guerdon.policies.tiny_lm import TinyTransformer

VOCABULARY, PAD, STOP = 9, 0, 1
OFTEN = (1, 4, 6, 8)  # stop tokens that end most rows early, so that the batch shrinks


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    network = TinyTransformer(VOCABULARY, width=16, layers=2, heads=2)
    with torch.no_grad():  # sharper than at initialisation, so that mistakes in the cache show
        network.embed.weight.mul_(20)
    return network


def decode_one_by_one(model, prompt, uniforms, budget, stops, temperature=1.0):
    """What the engine must draw, computed without cache, batch or padding."""
    tokens, logp, entropy = list(prompt), [], []
    for position in range(budget):
        with torch.no_grad():
            logits = model(torch.tensor([tokens]))[0, -1].double() / temperature
        probabilities = logits.softmax(0)
        u = float(uniforms.at(position)[0])
        token = min(int((probabilities.cumsum(0) <= u).sum()), VOCABULARY - 1)
        tokens.append(token)
        logp.append(math.log(probabilities[token]))
        entropy.append(float(-(probabilities * probabilities.log()).sum()))
        if token in stops:
            break
    return tokens[len(prompt) :], logp, entropy


prompts = st.lists(st.lists(st.integers(2, VOCABULARY - 1), min_size=1, max_size=5), min_size=1, max_size=6)


@settings(max_examples=25, deadline=None)
@given(prompts, st.integers(0, 2**40), st.sampled_from([(STOP,), OFTEN]))
def test_batched_cached_decoding_equals_decoding_one_by_one(model, prompts, seed, stops):
    options = GenerationOptions(max_new_tokens=6, temperature=0.8, stop_tokens=stops)
    out = generate(model, prompts, options, pad=PAD, seed=seed)
    for row, prompt in enumerate(prompts):
        tokens, logp, entropy = decode_one_by_one(model, prompt, RowUniforms(seed, [row]), 6, stops, 0.8)
        drawn = out.mask[row]
        assert out.tokens[row][drawn].tolist() == tokens
        assert out.finished[row] == (tokens[-1] in stops)
        assert torch.allclose(out.logp[row][drawn], torch.tensor(logp), atol=1e-4)
        assert torch.allclose(out.entropy[row][drawn], torch.tensor(entropy), atol=1e-4)
        assert (out.tokens[row][~drawn] == PAD).all()
        assert (out.logp[row][~drawn] == 0).all()


@pytest.mark.parametrize("stops", [(STOP,), OFTEN])
def test_a_row_draws_the_same_tokens_in_any_company(model, stops):
    options = GenerationOptions(max_new_tokens=8, stop_tokens=stops)
    together = generate(model, [[2, 3], [4], [2, 3], [5, 6, 7]], options, pad=PAD, seed=7)
    alone = generate(model, [[2, 3]], options, pad=PAD, seed=7, rows=[2])
    count = int(alone.mask.sum())
    assert together.mask[2].sum() == count
    assert torch.equal(together.tokens[2, :count], alone.tokens[0, :count])


def test_draws_follow_the_distribution(model):
    n = 4000
    out = generate(model, [[2, 3]] * n, GenerationOptions(max_new_tokens=1), pad=PAD, seed=3)
    with torch.no_grad():
        expected = model(torch.tensor([[2, 3]]))[0, -1].softmax(0)
    seen = torch.bincount(out.tokens[:, 0], minlength=VOCABULARY) / n
    error = (expected * (1 - expected) / n).sqrt()
    assert ((seen - expected).abs() <= 4 * error + 1e-9).all()


def test_greedy_takes_the_mode(model):
    out = generate(model, [[2], [3]], GenerationOptions(max_new_tokens=3, greedy=True), pad=PAD, seed=0)
    for row, first in enumerate([2, 3]):
        tokens = [first]
        for _ in range(3):
            with torch.no_grad():
                tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
        assert out.tokens[row].tolist() == tokens[1:]


def test_top_k_and_top_p_cut_the_tail(model):
    with torch.no_grad():
        order = model(torch.tensor([[2, 3]]))[0, -1].softmax(0)
    ranked = order.argsort(descending=True)
    top2 = generate(model, [[2, 3]] * 400, GenerationOptions(max_new_tokens=1, top_k=2), pad=PAD, seed=1)
    assert set(top2.tokens[:, 0].tolist()) == set(ranked[:2].tolist())
    share = float(order[ranked[:3]].sum()) - 1e-3
    nucleus = generate(model, [[2, 3]] * 400, GenerationOptions(max_new_tokens=1, top_p=share), pad=PAD, seed=1)
    assert set(nucleus.tokens[:, 0].tolist()) <= set(ranked[:3].tolist())
    assert torch.allclose(top2.logp[0, 0], order[top2.tokens[0, 0]].log(), atol=1e-5)  # of the policy, not the cut


@settings(max_examples=25, deadline=None)
@given(prompts, st.integers(0, 2**40))
def test_whether_ended_rows_leave_the_batch_changes_nothing(model, prompts, seed):
    options = GenerationOptions(max_new_tokens=12, stop_tokens=OFTEN)
    budgets = [1 + (seed + row) % 12 for row in range(len(prompts))]
    ours, theirs = (
        generate(model, prompts, options, pad=PAD, seed=seed, budgets=budgets, compact=compact)
        for compact in (True, False)
    )
    assert torch.equal(ours.tokens, theirs.tokens)
    assert torch.equal(ours.finished, theirs.finished)
    assert torch.allclose(ours.logp, theirs.logp, atol=1e-5)


def test_prefixes_of_any_kind_continue_as_they_would_alone(model):
    """Branches of one trajectory: what they share is computed once, and what each draws is its own."""
    whole = [2, 3, 4, 5, 6, 7, 2, 3, 4, 5, 6, 7]
    prefixes = [whole[:n] for n in (12, 5, 9, 5, 1)]
    options = GenerationOptions(max_new_tokens=5)
    together = generate(model, prefixes, options, pad=PAD, seed=3)
    for row, prefix in enumerate(prefixes):
        alone = generate(model, [prefix], options, pad=PAD, seed=3, rows=[row])
        assert torch.equal(together.tokens[row], alone.tokens[0])
        assert torch.allclose(together.logp[row], alone.logp[0], atol=1e-5)


def test_each_row_has_its_own_budget(model):
    out = generate(model, [[2]] * 4, GenerationOptions(max_new_tokens=5), pad=PAD, seed=0, budgets=[3, 0, 9, 1])
    assert out.mask.sum(dim=1).tolist() == [3, 0, 5, 1]
    assert not out.finished.any()


def test_a_row_ends_with_the_token_that_completes_a_string(model):
    def decode(rows):
        return ["".join("abcdefghi"[token] for token in row) for row in rows]

    options = GenerationOptions(max_new_tokens=30, stop=("de", "hhh"))
    out = generate(model, [[2, 3]] * 30, options, pad=PAD, seed=1, decode=decode)
    texts = decode([tokens[kept].tolist() for tokens, kept in zip(out.tokens, out.mask, strict=True)])
    assert out.finished.any()
    for text, finished in zip(texts, out.finished.tolist(), strict=True):
        assert finished == text.endswith(("de", "hhh"))
        assert "de" not in text[:-1]
        assert "hhh" not in text[:-1]


def test_stop_strings_need_a_decoder(model):
    with pytest.raises(SamplingError, match="need 'decode'"):
        generate(model, [[2]], GenerationOptions(max_new_tokens=2, stop=("x",)), pad=PAD, seed=0)


def test_an_empty_prefix_is_refused(model):
    with pytest.raises(SamplingError, match="prefix 1 has no tokens"):
        generate(model, [[2], []], GenerationOptions(max_new_tokens=2), pad=PAD, seed=0)


def test_processors_change_what_is_sampled_and_not_what_the_policy_thinks_of_it(model):
    seen = []

    def never_the_last_again(logits, written):
        seen.append((written.rows.tolist(), written.tokens.shape[1]))
        if written.tokens.shape[1]:
            logits = logits.scatter(1, written.tokens[:, -1:], float("-inf"))
        return logits

    options = GenerationOptions(max_new_tokens=6, processors=(never_the_last_again,), stop_tokens=(STOP,))
    out = generate(model, [[2, 3]] * 20, options, pad=PAD, seed=5)
    both = out.mask[:, 1:] & out.mask[:, :-1]
    assert (out.tokens[:, 1:] != out.tokens[:, :-1])[both].all()
    assert seen[0] == (list(range(20)), 0)
    assert [width for _, width in seen] == list(range(len(seen)))
    plain = generate(model, [[2, 3]], GenerationOptions(max_new_tokens=1), pad=PAD, seed=0)
    first = out.tokens[:, 0] == plain.tokens[0, 0]
    assert torch.allclose(out.logp[first, 0], plain.logp[0, 0])
    later = out.mask[:, 1]
    assert (out.sampled_logp[later, 1] > out.logp[later, 1]).all()  # what was forbidden had some probability


def test_log_probabilities_of_the_policy_and_of_what_was_sampled(model):
    options = GenerationOptions(max_new_tokens=1, temperature=0.7, top_k=4, top_p=0.9, min_p=0.05, top_logits=3)
    out = generate(model, [[2, 3]] * 50, options, pad=PAD, seed=2)
    with torch.no_grad():
        logits = model(torch.tensor([[2, 3]]))[0, -1]
    policy = (logits / 0.7).log_softmax(0)
    kept = keep_likely(policy[None], top_k=4, top_p=0.9, min_p=0.05).log_softmax(1)[0]
    drawn = out.tokens[:, 0]
    assert torch.allclose(out.logp[:, 0], policy[drawn], atol=1e-5)
    assert torch.allclose(out.sampled_logp[:, 0], kept[drawn], atol=1e-5)
    assert torch.isfinite(out.sampled_logp).all()
    best = logits.topk(3)
    assert torch.allclose(out.top_logits[7, 0], best.values, atol=1e-5)
    assert torch.equal(out.top_tokens[7, 0], best.indices)


def test_rows_are_handed_over_as_they_end(model):
    told = []

    def ended(rows, so_far):
        told.append((rows.tolist(), so_far.mask.sum(dim=1)[rows].tolist()))

    options = GenerationOptions(max_new_tokens=10, stop_tokens=OFTEN)
    out = generate(model, [[2, 3], [4], [5, 6]] * 4, options, pad=PAD, seed=9, ended=ended)
    assert sorted(row for rows, _ in told for row in rows) == list(range(12))
    assert len(told) > 1
    for rows, lengths in told:
        assert out.mask.sum(dim=1)[rows].tolist() == lengths
    assert [lengths[0] for _, lengths in told] == sorted(lengths[0] for _, lengths in told)


def test_nothing_to_draw(model):
    out = generate(model, [], GenerationOptions(max_new_tokens=3), pad=PAD, seed=0)
    assert out.tokens.shape[0] == 0
    out = generate(model, [[2]], GenerationOptions(max_new_tokens=0), pad=PAD, seed=0)
    assert not out.mask.any()


def test_uniforms_are_uniform_and_independent():
    draws = torch.stack([RowUniforms(5, range(2000)).at(p) for p in range(20)]).numpy()
    assert ((draws >= 0) & (draws < 1)).all()
    counts = np.histogram(draws, bins=20, range=(0, 1))[0]
    chi2 = ((counts - 2000) ** 2 / 2000).sum()
    assert chi2 < 43.8  # 0.999 quantile of chi-squared with 19 degrees of freedom
    for a, b in ((draws[0], draws[1]), (draws[:, 0], draws[:, 1])):
        assert abs(np.corrcoef(a, b)[0, 1]) < 4 / math.sqrt(len(a))
