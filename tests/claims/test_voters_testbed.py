import torch

from guerdon.claims.testbeds.tabular import bind
from guerdon.claims.testbeds.voters import Topics, adjacent, tie_lots


def right(answer, group):
    return (answer == 0).double().unsqueeze(1)


def summed():
    return [bind("shaping", "weighted_sum")]


def test_groups_stand_side_by_side_and_lots_are_shared_by_equal_answers():
    assert adjacent(6, 2).tolist() == [0, 0, 1, 1, 2, 2]
    lots = tie_lots(torch.tensor([0, 1, 1, 0]), torch.tensor([0.1, 0.2, 0.3, 0.4]), 2)
    assert torch.allclose(lots, torch.tensor([0.1, 0.2, 0.4, 0.3]))


def test_a_skill_reaches_problems_of_its_topic_alone():
    """Only problem 0 is rewarded; problem 1 shares its topic, problem 2 does not."""
    start = torch.full((3, 2), 0.5)

    def first(answer, group):
        return torch.where(group % 3 == 0, (answer == 0).double(), 0.0).unsqueeze(1)

    bed = Topics(start, torch.tensor([0, 0, 1]), own_rate=0.0, skill_rate=1.0)
    probs = bed.train(first, summed, seeds=2, steps=5, group_size=8)
    assert probs.shape == (6, 2, 3, 2)
    assert (probs[-1, :, 1, 0] > 0.6).all()
    assert torch.allclose(probs[-1, :, 2], torch.tensor(0.5).double())
    by_heart = Topics(start, torch.tensor([0, 0, 1]), own_rate=3.0, skill_rate=0.0)
    probs = by_heart.train(first, summed, seeds=2, steps=5, group_size=8)
    assert (probs[-1, :, 0, 0] > 0.6).all()
    assert torch.allclose(probs[-1, :, 1], torch.tensor(0.5).double())


def test_seeds_do_not_depend_on_how_many_there_are():
    bed = Topics(torch.full((2, 3), 1 / 3), torch.tensor([0, 1]), own_rate=2.0, skill_rate=1.0)
    told = []
    several = bed.train(
        right, summed, seeds=3, steps=3, group_size=4, watch=lambda step, stats: told.append((step, len(stats)))
    )
    alone = bed.train(right, summed, seeds=1, steps=3, group_size=4, first_seed=2)
    torch.testing.assert_close(several[:, 2:], alone)
    assert told == [(0, 3), (1, 3), (2, 3)]
