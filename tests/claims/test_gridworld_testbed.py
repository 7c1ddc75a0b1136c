import pytest
import torch
from torch import Tensor

from guerdon.claims.testbeds.episodes import Environment, Episodes, Step, play
from guerdon.claims.testbeds.gridworld import BEGIN, CHOOSE, DECIDE, KEEP, MOVE, PHASES, SKIP, SWITCH, KeyDoor, Planned
from guerdon.credit.grouping import per_action
from guerdon.seeding import torch_generator

UP, DOWN, LEFT, RIGHT = range(4)
HALF = torch.full((1,), 0.25, dtype=torch.float64)


def walk(room, state, moves):
    state, rewards, done = torch.tensor([state]), [], []
    for move in moves:
        after = room.step(state, torch.tensor([move]), HALF)
        state = after.state
        rewards.append(after.reward[0].tolist())
        done.append(bool(after.done))
    return int(state), rewards, done


def test_the_door_opens_for_whoever_has_the_key():
    room = KeyDoor(size=3, key=2, door=6)
    state, rewards, done = walk(room, 0, [RIGHT, RIGHT, DOWN, DOWN, LEFT, LEFT])
    assert rewards == [[0, 0, 0], [0, 1, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0], [1, 0, 0]]
    assert done == [False] * 5 + [True]
    assert state == 6 + 9
    assert walk(room, 0, [DOWN, DOWN])[1:] == ([[0, 0, 0]] * 2, [False, False])
    assert walk(room, 0, [UP, LEFT])[0] == 0
    assert walk(KeyDoor(size=3, key=2, door=6, noise=0.5), 0, [UP])[1] == [[0, 0, -0.5]]


def test_starts_are_free_cells():
    room = KeyDoor(size=3, key=2, door=6)
    starts = room.reset(torch.linspace(0, 0.999, 200, dtype=torch.float64))
    assert sorted(starts.unique().tolist()) == [0, 1, 3, 4, 5, 7, 8]


def test_a_turn_of_the_planned_room():
    bed = Planned(KeyDoor(size=3, key=2, door=6))
    state = bed.reset(HALF)
    assert int(state % PHASES) == BEGIN
    phases, actions = [], [0, 1, RIGHT, KEEP, 0, RIGHT, SWITCH, 0, DOWN]
    for action in actions:
        phases.append(int(state % PHASES))
        assert bool(bed.acts(state)) == (phases[-1] in (DECIDE, CHOOSE, MOVE))
        state = bed.step(state, torch.tensor([action]), HALF).state
    assert phases == [BEGIN, CHOOSE, MOVE, DECIDE, SKIP, MOVE, DECIDE, CHOOSE, MOVE]
    start = int(bed.room.reset(HALF))
    assert int(state) // (2 * PHASES) == walk(bed.room, start, [RIGHT, RIGHT, DOWN])[0]
    assert int(state) // PHASES % 2 == 0
    held = (torch.tensor([4, 4 + 9]) * 2 + 1) * PHASES
    assert bed.observe(held + MOVE).unique().numel() == 1
    assert bed.observe(held + DECIDE).unique().numel() == 2
    legal = bed.legal()
    assert legal[MOVE].all()
    assert legal[DECIDE].tolist() == [True, True, False, False]


def test_what_methods_see_of_planned_episodes():
    bed, seen = Episodes(Planned(KeyDoor(size=3, key=2, door=6, turns=4))), {}

    def look(reward: Tensor, dense: Tensor, mask: Tensor, turn: Tensor, state_key: Tensor, payload, done: Tensor):
        seen.update(dense=dense, mask=mask, turn=turn, state_key=state_key, marks=payload["marks"], reward=reward)
        return per_action(reward, mask)

    bed.train(seeds=2, steps=1, group_size=3, groups=2, lr=0.0, credit=look)
    mask, turn, marks = seen["mask"], seen["turn"], seen["marks"]
    assert mask.shape[0] == 12
    assert torch.equal(mask, marks["switch"] | marks["subgoal"] | marks["action"])
    assert torch.equal(turn[mask], (torch.arange(mask.shape[1]) // 3).expand_as(turn)[mask])
    for row in range(12):
        for m in range(int(turn[row].max()) + 1):
            here = turn[row] == m
            assert bool(marks["boundary"][row][here].all()) == bool(marks["subgoal"][row][here].any())
    assert not marks["switch"][:, :3].any()
    assert marks["subgoal"][:, 1].all()
    torch.testing.assert_close(seen["dense"].sum(dim=1), seen["reward"])
    assert (seen["state_key"][:3] % PHASES == seen["state_key"][:3, :1] % PHASES)[:, 0].all()


def test_groups_start_alike_and_a_seed_is_itself_whatever_runs_beside_it():
    room = KeyDoor(size=4, key=3, door=12, turns=12, noise=0.3)
    generators = [torch_generator(s, "x") for s in range(3)]
    played = play(room, torch.zeros(3, room.states, 4), generators, 2, 4)
    starts = played.state[:, 0].view(3, 2, 4)
    assert (starts == starts[:, :, :1]).all()
    options = {"steps": 4, "group_size": 4, "groups": 2, "lr": 50.0, "credit": "gigpo", "measure": 2, "episodes": 8}
    both = Episodes(room).train(seeds=3, **options)
    alone = Episodes(room).train(seeds=1, first_seed=2, **options)
    apart = Episodes(room).train(seeds=3, per_seed=True, **options)
    torch.testing.assert_close(both.logits[2:], alone.logits)
    torch.testing.assert_close(both.logits, apart.logits)
    assert both.steps == [0, 2, 4]
    assert both.means["door"].shape == (3, 3)
    assert not torch.equal(both.logits[0], both.logits[1])


class Bandit(Environment):
    """One turn, two actions, of which the first pays."""

    states = observations = turns = 1
    actions = 2

    def reset(self, chance: Tensor) -> Tensor:
        return torch.zeros_like(chance, dtype=torch.int64)

    def step(self, state: Tensor, action: Tensor, chance: Tensor) -> Step:
        return Step(state, (action == 0).double(), torch.ones_like(action, dtype=torch.bool))


def test_a_step_of_reinforce_is_the_known_gradient():
    def raw(reward, mask):
        return reward.unsqueeze(1) * mask

    start = torch.tensor([[0.0, 1.0]])
    history = Episodes(Bandit(), start).train(seeds=1, steps=1, group_size=100_000, lr=1.0, credit=raw, episodes=1)
    p = start[0].double().softmax(dim=0)
    expected = p * (torch.tensor([1.0, 0.0]) - p[0])
    torch.testing.assert_close((history.logits - start)[0, 0], expected, atol=5e-3, rtol=0)


def test_the_critic_learns_and_updates_have_a_ratio():
    history = Episodes(Bandit()).train(
        seeds=2,
        steps=60,
        group_size=32,
        lr=0.0,
        credit={"name": "gae", "whiten": False},
        objective="ppo_clip",
        terms=["value"],
        critic_lr=0.05,
        updates=2,
    )
    assert history.values[:, 0].tolist() == pytest.approx([0.5, 0.5], abs=0.1)
    assert {"ppo_clip/ratio", "value/explained_variance"} <= history.stats[-1].keys()
    assert history.first("reward", 2.0).tolist() == [61, 61]
    assert history.first("done", 1.0).tolist() == [0, 0]
