import torch

from guerdon.monitor.charts import png
from guerdon.monitor.samples import GROUPS, MEMBERS, TABLE_ROWS, TEXT_LENGTH, kind_of, pixel_range, sample_step
from guerdon.rewards.base import Fault
from guerdon.rollouts import make_rollouts
from guerdon.training.rollout_table import rollout_table


def table(reward, group, *, text=True, faults=(), **fields):
    n = len(reward)
    mask = torch.ones(n, 2).bool()
    rollouts = make_rollouts(
        torch.tensor(group),
        torch.tensor(group),
        mask,
        torch.zeros(n, 2),
        done=torch.ones(n).bool(),
        truncated=torch.arange(n) == 0,
        payload=fields.pop("payload", {}),
        prompt=[f"prompt {g}" for g in group],
        text=[f"text {i}" for i in range(n)] if text else None,
        answer=[f"answer {g}" for g in group],
        **fields,
    )
    rollouts.rewards["task"] = torch.tensor(reward)
    rollouts.watch["gold"] = torch.zeros(n)
    rollouts.reward = torch.tensor(reward)
    rollouts.advantage = torch.stack([torch.tensor(reward), -torch.tensor(reward)], 1)
    return rollout_table(3, rollouts, faults=faults)


def rows(sample) -> list[list[int]]:
    return [[t.row for t in group.trajectories] for group in sample.groups]


def test_groups_that_differ_most_come_first_and_their_members_by_reward():
    reward = [0.0, 0.0, 0.2, 0.4, 1.0, 0.0, 0.5, 0.6]
    sample = sample_step(3, table(reward, [9, 9, 4, 4, 7, 7, 1, 1]))
    assert rows(sample) == [[4, 5], [3, 2], [7, 6]]
    assert len(sample.groups) == GROUPS
    assert (sample.step, sample.kind, sample.size) == (3, "language", 8)
    first = sample.groups[0]
    assert (first.prompt, first.answer, first.size) == ("prompt 7", "answer 7", 2)
    best = first.trajectories[0]
    assert (best.text, best.reward, best.length) == ("text 4", 1.0, 2)
    assert best.components == {"task": 1.0, "gold (watch only)": 0.0}
    assert best.advantage == (-1.0, 1.0)


def test_of_a_large_group_the_best_the_worst_and_some_between():
    n = 13
    (group,) = sample_step(0, table([i / n for i in range(n)], [0] * n)).groups
    assert [t.row for t in group.trajectories] == [12, 8, 4, 0]
    assert len(group.trajectories) == MEMBERS
    assert group.size == n


def test_groups_without_a_difference_are_taken_from_best_to_worst():
    reward = [i / 10 for i in range(9)]
    assert rows(sample_step(0, table(reward, list(range(9))))) == [[8], [4], [0]]


def test_what_rewards_said_is_shown_beside_their_numbers():
    details = [{"task": "because"}, {}, {"task": {"n": 1}, "gold": "x" * (TEXT_LENGTH + 1)}]
    (group,) = sample_step(0, table([1.0, 0.5, 0.0], [0, 0, 0], detail=details)).groups
    said = [t.details for t in group.trajectories]
    assert said == [{"task says": "because"}, {}, {"task says": '{"n": 1}', "gold says": "x" * TEXT_LENGTH}]


def test_endings_and_faults_are_told():
    faults = [Fault("task", 1, "exception", "KeyError")]
    (group,) = sample_step(0, table([1.0, 0.0], [0, 0], faults=faults)).groups
    assert [t.ending for t in group.trajectories] == ["cut", "ended"]
    assert "KeyError" in group.trajectories[1].fault


def test_a_trajectory_without_a_reward_comes_last():
    one = table([1.0, 0.5, 0.0], [0, 0, 0])
    at = one.column_names.index("reward")
    one = one.set_column(at, "reward", [[None, 0.5, 0.0]])
    assert rows(sample_step(0, one)) == [[1, 2, 0]]


def test_long_texts_are_cut_and_the_rest_is_counted():
    long = table([1.0, 0.0], [0, 0])
    at = long.column_names.index("text")
    long = long.set_column(at, "text", [["x" * (TEXT_LENGTH + 7), ""]])
    first, second = sample_step(0, long).groups[0].trajectories
    assert (len(first.text), first.hidden) == (TEXT_LENGTH, 7)
    assert (second.text, second.hidden) == ("", 0)


def test_control_is_one_table_of_returns():
    n = 40
    sample = sample_step(0, table([float(i) for i in range(n)], list(range(n)), text=False))
    (group,) = sample.groups
    assert sample.kind == "control"
    assert len(group.trajectories) == TABLE_ROWS
    assert (group.trajectories[0].reward, group.trajectories[-1].reward) == (39.0, 0.0)


def test_flow_shows_its_images_in_their_own_shape():
    flat = torch.tensor([[-1.0, 0.0, 1.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    square = sample_step(0, table([1.0, 0.0], [0, 0], text=False, payload={"sample": flat}))
    assert square.kind == "flow"
    assert square.groups[0].trajectories[0].image == png([0.0, 0.5, 1.0, 1.0], 2, 2)
    wide = sample_step(0, table([1.0, 0.0], [0, 0], text=False, payload={"sample": flat.view(2, 1, 4)}))
    assert wide.groups[0].trajectories[0].image == png([0.0, 0.5, 1.0, 1.0], 1, 4)
    odd = sample_step(0, table([1.0, 0.0], [0, 0], text=False, payload={"sample": flat[:, :3]}))
    assert odd.groups[0].trajectories[0].image == png([0.0, 0.5, 1.0], 1, 3)


def test_pixels_are_centred_or_not():
    assert pixel_range([-0.9, 0.3]) == (-1.0, 1.0)
    assert pixel_range([-0.1, 0.9]) == (0.0, 1.0)
    assert pixel_range([]) == (0.0, 1.0)


def test_an_empty_step_has_no_groups():
    empty = table([1.0], [0]).slice(0, 0)
    assert sample_step(0, empty).groups == []
    assert kind_of(table([1.0], [0])) == "language"
