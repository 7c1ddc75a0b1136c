import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.policies.tiny_lm import TinyTransformer
from guerdon.sampling.engine import GenerationOptions, generate, left_pad
from guerdon.sampling.noise import RowUniforms

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


def test_nothing_to_draw(model):
    out = generate(model, [], GenerationOptions(max_new_tokens=3), pad=PAD, seed=0)
    assert out.tokens.shape[0] == 0
    out = generate(model, [[2]], GenerationOptions(max_new_tokens=0), pad=PAD, seed=0)
    assert not out.mask.any()


def test_left_pad():
    ids, mask = left_pad([[1, 2], [3]], pad=0)
    assert ids.tolist() == [[1, 2], [0, 3]]
    assert mask.tolist() == [[True, True], [False, True]]


def test_uniforms_are_uniform_and_independent():
    draws = torch.stack([RowUniforms(5, range(2000)).at(p) for p in range(20)]).numpy()
    assert ((draws >= 0) & (draws < 1)).all()
    counts = np.histogram(draws, bins=20, range=(0, 1))[0]
    chi2 = ((counts - 2000) ** 2 / 2000).sum()
    assert chi2 < 43.8  # 0.999 quantile of chi-squared with 19 degrees of freedom
    for a, b in ((draws[0], draws[1]), (draws[:, 0], draws[:, 1])):
        assert abs(np.corrcoef(a, b)[0, 1]) < 4 / math.sqrt(len(a))
