import pytest
import torch

from guerdon.claims.testbeds.judges import SkillJudge, closeness, noise, share_of_letters
from guerdon.rewards.judge import Referee


def uniform(n, seed=0):
    return torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_noise_is_standard_normal_independent_and_repeatable():
    key, other = uniform(40000), uniform(40000, seed=1)
    there, back = noise(key, other), noise(other, key)
    for x in (there, back, noise(key, salt=1)):
        assert x.mean().item() == pytest.approx(0, abs=0.02)
        assert x.std().item() == pytest.approx(1, abs=0.02)
        assert (x.abs() < 1).double().mean().item() == pytest.approx(0.6827, abs=0.01)
    assert (
        torch.corrcoef(torch.stack([there, back, noise(key), noise(key, salt=1)])).fill_diagonal_(0).abs().max() < 0.03
    )
    assert noise(key[5:9], other[5:9]).tolist() == there[5:9].tolist()


def test_the_skill_judge_errs_as_much_as_it_says():
    n = 20000
    skill, key = torch.zeros(2 * n, dtype=torch.float64), uniform(2 * n)
    judge = SkillJudge(skill, key, pair_noise=1.0, bias=3.0)
    scores = Referee(judge)(torch.arange(n), torch.arange(n, 2 * n))
    seen = (scores[:, 0] - scores[:, 1]) / 0.2  # two orders, a tenth of a point for each unit of skill
    assert seen.mean().item() == pytest.approx(0, abs=0.03), "the bias of the first place cancels"
    assert seen.std().item() == pytest.approx(1.0, abs=0.03)
    exact = SkillJudge(torch.arange(3.0), key[:3], pair_noise=0.0)(torch.tensor([2]), torch.tensor([0]))
    assert exact.flatten().tolist() == pytest.approx([5.1, 4.9])


def test_pointwise_scores_are_flat_and_noisy():
    skill = torch.tensor([-2.0, 2.0], dtype=torch.float64).repeat(20000)
    scores = SkillJudge(skill, uniform(40000)).pointwise()
    assert (scores[1::2].mean() - scores[::2].mean()).item() == pytest.approx(0.2, abs=0.015)
    assert scores[::2].std().item() == pytest.approx(0.3, abs=0.01)


def test_judges_of_the_word_game():
    assert share_of_letters(["spell sun"], ["nus"], ["nux"]) == [(10.0, pytest.approx(20 / 3))]
    assert share_of_letters(["sun", ""], ["nusnus", "a"], ["", ""]) == [(5.0, 0.0), (0.0, 0.0)]
    assert closeness(["nus", "x"], ["nus", "nus"], ["a", "b"]) == [[5.0, 5.0], [1.0, 1.0]]
