import torch

from guerdon.claims.testbeds.pages import KINDS, Pages
from guerdon.rewards.gui_action import gui_action

PAGES = Pages()


def test_what_leads_on_is_what_earns_everything():
    for page, goal, layout in [(0, 1, 2), (1, 3, 0), (2, 0, 1), (3, 2, 2)]:
        value, _ = gui_action(PAGES.texts, [PAGES.wanted(page, goal, layout)] * len(PAGES.texts))
        assert torch.equal(value > 0.999, PAGES.right[page, goal, layout])


def test_a_wrong_action_ends_a_task_and_blanks_the_screen():
    prompt = torch.tensor([[[2, 1, 0], [1, 1, 0]]])
    tokens = PAGES.solutions(prompt)
    assert PAGES.mask(prompt, tokens).sum(dim=-1).tolist() == [[4, 2]]
    tokens[0, 0, 1] = tokens[0, 0, 0]
    assert PAGES.mask(prompt, tokens)[0, 0].tolist() == [True, True, False, False]
    seen = PAGES.writing().observe(prompt, tokens)
    assert seen.shape[-1] == PAGES.writing().size
    assert seen[0, 0, 1, 4:].any()
    assert not seen[0, 0, 2, 4:].any()


def test_chances_multiply_over_the_pages_of_a_task():
    prompt = PAGES.problems.unsqueeze(0)
    uniform = torch.full((1, len(PAGES.problems), len(KINDS), len(PAGES.actions)), 1 / len(PAGES.actions)).log()
    chance = PAGES.chance(prompt, uniform)[0]
    each = 4 / len(PAGES.actions)
    assert torch.allclose(chance[PAGES.problems[:, 0] == 0], torch.tensor(each))
    assert torch.allclose(chance[PAGES.problems[:, 0] == 1], torch.tensor(each / len(PAGES.actions)))
