import pytest
import torch

from guerdon.reward_models.evaluate import arena
from guerdon.reward_models.generative import Candidate, GenerativePRM, comparison_prompt, web_state
from guerdon.rewards.judge import text_referee, tournament


def longer(prompts):
    """Prefers the longer candidate, in words that name both."""
    out = []
    for prompt in prompts:
        first, second = prompt.partition("\n\nAction 1\n")[2].partition("\n\nWhich")[0].split("\n\nAction 2\n")
        out.append(f"Comparison: 1 against 2\nVerdict: {1 if len(first) >= len(second) else 2}")
    return out


def test_the_prompt_has_state_candidates_and_sections_in_order():
    state = web_state("buy milk", "[1] button Search", ["open shop"])
    prompt = comparison_prompt(state, Candidate("click [1]", "look for it").text, Candidate("stop").text)
    parts = ["buy milk", "1. open shop", "[1] button", "Action 1\nThought: look for it\nAction: click [1]"]
    parts += ["Action 2\nAction: stop", "Principles", "Grounding", "Comparison", "Verdict"]
    places = [prompt.index(part) for part in parts]
    assert places == sorted(places)
    assert "So far:\nnothing" in web_state("x", "y")


def test_verdicts_become_scores_and_unreadable_ones_nan():
    said = iter(["Verdict: 1", "Verdict: 2", "neither"])
    judge = GenerativePRM(lambda prompts: [next(said) for _ in prompts])
    scores = judge(["s"] * 3, ["a"] * 3, ["b"] * 3)
    assert scores[:2].tolist() == [[10, 0], [0, 10]]
    assert scores[2].isnan().all()
    assert judge([], [], []).shape == (0, 2)
    with pytest.raises(ValueError, match="0 texts for 1 prompts"):
        GenerativePRM(lambda prompts: [])(["s"], ["a"], ["b"])


def test_it_takes_the_place_of_a_judge_of_pairs():
    judge = GenerativePRM(longer)
    result = arena(judge, ["p", "p"], ["long answer", "a"], ["short", "longer"])
    assert (result.wins, result.losses, result.failures) == (1, 1, 0)
    referee = text_referee(judge, ["p"] * 4, ["aaa", "a", "aaaa", "aa"])
    reward = tournament(referee, torch.zeros(4, dtype=torch.int64)).reward
    assert int(reward.argmax()) == 2
    assert referee.stats()["order_disagreement"] == 0
