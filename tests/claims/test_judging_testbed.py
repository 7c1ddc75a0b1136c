import torch

from guerdon.claims.testbeds.judging import Shelf, justify, writer, writing, written
from guerdon.claims.testbeds.sequences import Networks
from guerdon.reward_models.generative import GenerativePRM, comparison_prompt
from guerdon.rewards.verdict import read_choice


def test_justifications_end_with_the_right_verdict():
    prompt, verdict = Shelf("any").draw(50, 0)
    tokens = justify(prompt, verdict)
    assert [read_choice(written(t)) for t in tokens.tolist()] == verdict.tolist()
    wants, first, second, _ = tokens.unbind(dim=1)
    assert torch.equal(wants == first, verdict == 1)
    assert torch.equal(wants == second, verdict == 2)
    assert read_choice(written([0, 0, 0, 3])) is None


def test_steps_have_four_bad_actions_and_a_network_reads_them():
    steps = Shelf("any").steps(3, 1)
    assert all(len({step.chosen, *step.rejected}) == 5 for step in steps)
    networks = Networks(writing(), [0])
    prompts = [comparison_prompt(step.state, step.chosen.text, step.rejected[0].text) for step in steps]
    assert all(text.startswith("Principles") for text in writer(networks, 0)(prompts))
    pair = [steps[0].chosen.text], [steps[0].rejected[0].text]
    assert GenerativePRM(writer(networks, 0))([steps[0].state], *pair).shape == (1, 2)


def test_pages_of_environments_differ():
    assert not torch.equal(Shelf("one").draw(20, 0)[0], Shelf("other").draw(20, 0)[0])
    assert torch.equal(Shelf("one").draw(20, 0)[0], Shelf("one").draw(20, 0)[0])
