import torch

from guerdon.claims.testbeds.cards import Cards, action_text, thought_text, thought_tokens

CARDS = Cards(5)


def test_answers_name_the_cards_and_their_sum():
    assert CARDS.answers(torch.tensor([[0], [9], [24]])).tolist() == [[0, 0, 0], [1, 4, 0], [4, 4, 3]]
    assert thought_tokens(thought_text([3, 1, 4])) == [3, 1]
    assert action_text([3, 1, 4]) == "say 4"


def test_every_state_looks_different():
    assert len({tuple(image.flatten().tolist()) for image in CARDS.images}) == 25
    seen = CARDS.writing().observe(CARDS.states.unsqueeze(0), CARDS.answers(CARDS.states).unsqueeze(0))
    assert seen.shape == (1, 25, 4, CARDS.writing().size)
    assert torch.equal(seen[0, :, 0, :35], CARDS.images.flatten(1))
