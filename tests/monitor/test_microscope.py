import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from guerdon.errors import GuerdonError
from guerdon.monitor.charts import png
from guerdon.monitor.microscope import (
    CHARACTERS,
    MEMBERS,
    TABLE_ROWS,
    TOKENS,
    kind_of,
    microscope_page,
    pixel_range,
    shade,
)
from guerdon.rewards.base import Fault
from guerdon.rollouts import make_rollouts
from guerdon.training.folder import RunFolder


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    return RunFolder.create(tmp_path / "run's [1]", "name: run\n")


def save(
    folder, reward, group, *, text=True, faults=(), step=3, credit=None, tokens=None, mask=None, turn=None, **more
):
    """Write a step whose rows have two actions unless ``mask`` says otherwise."""
    n = len(reward)
    mask = torch.ones(n, 2).bool() if mask is None else torch.tensor(mask).bool()
    texts = [f"text {i}" for i in range(n)] if text is True else text or None
    rollouts = make_rollouts(
        torch.tensor(group),
        torch.tensor(group),
        mask,
        torch.zeros(mask.shape),
        done=torch.ones(n).bool(),
        truncated=torch.arange(n) == 0,
        payload=more.pop("payload", {}),
        turn=None if turn is None else torch.tensor(turn),
        prompt=[f"prompt {g}" for g in group],
        text=texts,
        answer=[f"answer {g}" for g in group],
        detail=more.pop("detail", None),
    )
    rollouts.rewards["task"] = torch.tensor(reward)
    rollouts.watch["gold"] = torch.zeros(n)
    for name, value in more.items():
        rollouts.rewards[name] = torch.tensor(value)
    rollouts.reward = torch.tensor(reward)
    up = torch.tensor(reward).unsqueeze(1)
    rollouts.advantage = torch.cat([up, -up], 1) if credit is None else torch.tensor(credit)
    folder.write_rollouts(step, rollouts, faults=faults, token_text=tokens)
    return folder


def edit(folder, step, column, values):
    """Replace a column of a saved step."""
    path = folder.rollouts_path / f"step-{step:06d}.parquet"
    table = pq.read_table(path)
    pq.write_table(table.set_column(table.column_names.index(column), column, [values]), path)


def rows(page) -> list[list[int]]:
    return [[r.row for r in group.rollouts] for group in page.groups]


def test_groups_that_differ_most_come_first_and_their_members_by_reward(folder):
    save(folder, [0.0, 0.0, 0.2, 0.4, 1.0, 0.0, 0.5, 0.6], [9, 9, 4, 4, 7, 7, 1, 1])
    page = microscope_page(folder)
    assert rows(page) == [[4, 5], [3, 2], [7, 6]]
    assert (page.step, page.steps, page.kind, page.rows, page.total) == (3, [3], "language", 8, 4)
    first = page.groups[0]
    assert (first.key, first.prompt, first.answer, first.size, first.spread) == (7, "prompt 7", "answer 7", 2, 1.0)
    best = first.rollouts[0]
    assert (best.text, best.reward, best.length) == ("text 4", 1.0, 2)
    assert best.components == {"task": 1.0, "gold (watch only)": 0.0}
    assert best.advantage == (-1.0, 1.0)


def test_pages_and_orders(folder):
    reward = [0.0, 0.0, 0.2, 0.4, 1.0, 0.0, 0.5, 0.6]
    save(folder, reward, [9, 9, 4, 4, 7, 7, 1, 1])
    keys = {
        sort: [g.key for g in microscope_page(folder, count=4, sort=sort).groups] for sort in ("best", "worst", "row")
    }
    assert keys == {"best": [1, 7, 4, 9], "worst": [9, 4, 7, 1], "row": [9, 4, 7, 1]}
    assert [g.key for g in microscope_page(folder, first=1, count=2, sort="row").groups] == [4, 7]
    assert microscope_page(folder, first=4, sort="row").groups == []


def test_groups_without_a_difference_are_taken_from_both_ends(folder):
    save(folder, [i / 10 for i in range(5)], list(range(5)))
    assert rows(microscope_page(folder, count=5)) == [[4], [0], [3], [1], [2]]


def test_of_a_large_group_the_best_the_worst_and_some_between(folder):
    n = 13
    save(folder, [i / n for i in range(n)], [0] * n)
    (group,) = microscope_page(folder).groups
    assert [r.row for r in group.rollouts] == [12, 8, 4, 0]
    assert len(group.rollouts) == MEMBERS
    assert group.size == n


def test_steps(folder):
    assert microscope_page(folder) is None
    assert kind_of(folder) is None
    for step in (5, 20):
        save(folder, [1.0, 0.0], [0, 0], step=step)
    assert microscope_page(folder).step == 20
    assert (microscope_page(folder, step=5).step, microscope_page(folder, step=5).steps) == (5, [5, 20])
    with pytest.raises(GuerdonError, match=r"no rollouts of step 7; it has those of \[5, 20\]"):
        microscope_page(folder, step=7)


def test_tokens_are_coloured_by_their_credit_on_the_scale_of_the_page(folder):
    tokens = [["a", "b", "<eos>"], ["c", "d", "<eos>"]]
    credit = [[2.0, -0.5, 0.0], [-2.0, 1.1, 0.5]]
    save(folder, [1.0, 0.0], [0, 0], text=["a b", "c d"], tokens=tokens, credit=credit, mask=[[1] * 3] * 2)
    page = microscope_page(folder)
    assert page.scale == 2.0
    (turn,) = page.groups[0].rollouts[0].turns
    assert [(p.text, p.credit, p.shade) for p in turn.pieces] == [
        ("a", 2.0, "p4"),
        (" b", -0.5, "n1"),
        ("<eos>", 0.0, "z"),
    ]
    assert [p.special for p in turn.pieces] == [False, False, True]
    assert turn.pieces[1].label == "b · position 1 · credit −0.500"
    assert [p.shade for p in page.groups[0].rollouts[1].turns[0].pieces] == ["n4", "p3", "p1"]


def test_rewards_of_single_actions_are_in_the_label_and_in_the_episode(folder):
    dense = [[0.25, 0.0], [0.0, 1.0]]
    save(folder, [1.0, 0.0], [0, 0], text=["a b", "c d"], tokens=[["a", "b"], ["c", "d"]], process=dense)
    best = microscope_page(folder).groups[0].rollouts[0]
    assert best.turns[0].pieces[0].label == "a · position 0 · credit 1 · process 0.250"
    assert best.dense == {"process": [0.25, 0.0]}
    assert best.components["process"] == 0.25


def test_the_same_credit_everywhere_is_told_once_and_still_coloured(folder):
    tokens = [["a", "b", "<eos>"], ["c", "d", "<eos>"]]
    save(
        folder,
        [1.0, 0.0],
        [0, 0],
        text=["a b", "c d"],
        tokens=tokens,
        credit=[[0.5] * 3, [0.1, 0.2, 0.3]],
        mask=[[1] * 3] * 2,
    )
    best, worst = microscope_page(folder).groups[0].rollouts
    assert (best.same_credit, best.same_shade) == (0.5, "p4")
    (turn,) = best.turns
    assert [(p.text, p.shade) for p in turn.pieces] == [("a b", "p4"), ("<eos>", "p4")]
    assert turn.pieces[0].label == "2 tokens · positions 0 to 1 · credit 0.500"
    assert worst.same_credit is None
    assert len(worst.turns[0].pieces) == 3


def test_tokens_with_rewards_of_their_own_stay_apart_under_the_same_credit(folder):
    dense = [[0.25, 0.75], [0.0, 0.0]]
    tokens, credit = [["a", "b"], ["c", "d"]], [[0.5, 0.5], [0.0, 0.0]]
    save(folder, [1.0, 0.0], [0, 0], text=["a b", "c d"], tokens=tokens, credit=credit, process=dense)
    best = microscope_page(folder).groups[0].rollouts[0]
    assert best.same_credit == 0.5
    assert [p.label.rpartition("process ")[2] for p in best.turns[0].pieces] == ["0.250", "0.750"]


def test_a_conversation_shows_who_wrote_what(folder):
    mask, turn = [[1, 0, 0, 1]], [[0, -1, -1, 1]]
    save(
        folder,
        [1.0],
        [0],
        text=["hi you there bye"],
        tokens=[["hi", "bye"]],
        mask=mask,
        turn=turn,
        credit=[[0.5, 0, 0, -0.5]],
    )
    (rollout,) = microscope_page(folder).groups[0].rollouts
    assert [(t.number, [p.text for p in t.pieces], t.heard) for t in rollout.turns] == [
        (0, ["hi"], " you there "),
        (1, ["bye"], None),
    ]
    assert [p.credit for t in rollout.turns for p in t.pieces] == [0.5, -0.5]
    assert rollout.text is None


def test_without_tokens_the_text_is_shown_as_it_is(folder):
    save(folder, [1.0, 0.0], [0, 0])
    best = microscope_page(folder).groups[0].rollouts[0]
    assert (best.turns, best.text) == ([], "text 0")


def test_long_texts_are_cut_and_the_rest_is_counted(folder):
    many = ["x"] * (TOKENS + 7)
    credit = [[1.0] * len(many)]
    save(folder, [1.0], [0], text=[" ".join(many)], tokens=[many], mask=[[1] * len(many)], credit=credit)
    (rollout,) = microscope_page(folder).groups[0].rollouts
    assert rollout.hidden == 7
    assert rollout.turns[0].pieces[0].text.count("x") == TOKENS
    save(folder, [1.0], [0], step=4, text=["y" * (CHARACTERS + 9)])
    (rollout,) = microscope_page(folder).groups[0].rollouts
    assert (len(rollout.text), rollout.hidden) == (CHARACTERS, 9)


def test_long_tokens_are_cut_too(folder):
    many = [letter * (CHARACTERS // 4) for letter in "abcdef"]
    save(folder, [1.0], [0], text=[" ".join(many)], tokens=[many], mask=[[1] * 6], credit=[[1.0, 2, 3, 4, 5, 6]])
    (rollout,) = microscope_page(folder).groups[0].rollouts
    pieces = rollout.turns[0].pieces
    assert [p.text.strip()[0] for p in pieces] == ["a", "b", "c", "d"]
    assert pieces[-1].text.endswith("d…")
    assert rollout.hidden == 2
    assert max(len(p.label) for p in pieces) < 100


def test_what_rewards_said_is_shown_beside_their_numbers(folder):
    details = [{"task": "because"}, {}, {"task": {"n": 1, "why": "late"}, "gold": "x" * (CHARACTERS + 1)}]
    save(folder, [1.0, 0.5, 0.0], [0, 0, 0], detail=details)
    said = [r.details for r in microscope_page(folder).groups[0].rollouts]
    assert said == [{"task says": "because"}, {}, {"task says": "n: 1; why: late", "gold says": "x" * CHARACTERS}]


def test_endings_faults_and_rewards_that_do_not_apply(folder):
    save(folder, [1.0, 0.0], [0, 0], faults=[Fault("task", 1, "exception", "KeyError")], other=[1.0, float("nan")])
    best, worst = microscope_page(folder).groups[0].rollouts
    assert [best.ending, worst.ending] == ["cut", "ended"]
    assert "KeyError" in worst.fault
    assert (best.components["other"], worst.components["other"]) == (1.0, None)


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_a_trajectory_without_a_reward_comes_last(folder, missing):
    save(folder, [1.0, 0.5, 0.0], [0, 0, 0])
    edit(folder, 3, "reward", [missing, 0.5, 0.0])
    page = microscope_page(folder)
    assert rows(page) == [[1, 2, 0]]
    assert page.groups[0].spread == 0.5


def test_control_has_episodes_and_one_table_of_returns(folder):
    n = 40
    save(folder, [float(i) for i in range(n)], list(range(n)), text=None, step_reward=[[1.0, 2.0]] * n)
    page = microscope_page(folder)
    assert page.kind == "control" == kind_of(folder)
    assert [r.reward for r in page.table[:: TABLE_ROWS - 1]] == [39.0, 0.0]
    assert len(page.table) == TABLE_ROWS
    assert rows(page) == [[39], [0], [38]]
    assert page.groups[0].rollouts[0].dense == {"step_reward": [1.0, 2.0]}
    assert page.groups[0].rollouts[0].credit == [39.0, -39.0]


def test_flow_shows_its_images_in_their_own_shape(folder):
    flat = torch.tensor([[-1.0, 0.0, 1.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    pictures = {"square": (flat, 2, 2), "wide": (flat.view(2, 1, 4), 1, 4)}
    for step, (sample, height, width) in enumerate(pictures.values()):
        save(folder, [1.0, 0.0], [0, 0], text=None, payload={"sample": sample}, step=step)
        page = microscope_page(folder, step=step)
        assert page.kind == "flow"
        assert page.groups[0].rollouts[0].image == png([0.0, 0.5, 1.0, 1.0], height, width)
    save(folder, [1.0, 0.0], [0, 0], text=None, payload={"sample": flat[:, :3]}, step=9)
    assert microscope_page(folder).groups[0].rollouts[0].image == png([0.0, 0.5, 1.0], 1, 3)


def test_flow_shows_the_states_on_the_way_with_the_credit_of_each_step(folder):
    latents = torch.rand(4, 3, 4, generator=torch.Generator().manual_seed(0))
    payload = {"latents": latents, "sample": latents[:, -1]}
    save(
        folder,
        [0.5, 1.0, 0.0, 0.2],
        [0] * 4,
        text=None,
        payload=payload,
        credit=[[0.0, 0.0], [1.0, 0.5], [-1.0, -1.0], [0.0, 0.0]],
    )
    best, _, _, worst = microscope_page(folder).groups[0].rollouts
    assert [(f.step, f.credit, f.shade) for f in best.frames] == [(0, None, ""), (1, 1.0, "p4"), (2, 0.5, "p2")]
    assert [f.image for f in worst.frames] == [png(state.tolist(), 2, 2) for state in latents[2]]
    assert [bool(r.frames) for r in microscope_page(folder).groups[0].rollouts] == [True, False, False, True]


def test_pixels_are_centred_or_not():
    assert pixel_range([-0.9, 0.3]) == (-1.0, 1.0)
    assert pixel_range([-0.1, 0.9]) == (0.0, 1.0)
    assert pixel_range([]) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("credit", "expected"),
    [
        (4.0, "p4"),
        (3.01, "p4"),
        (3.0, "p3"),
        (1e-9, "p1"),
        (-1.0, "n1"),
        (-9.0, "n4"),
        (0.0, "z"),
        (None, ""),
        (float("nan"), ""),
    ],
)
def test_shades_have_four_depths_on_each_side(credit, expected):
    assert shade(credit, 4.0) == expected


def test_an_empty_step_has_no_groups(folder):
    save(folder, [1.0], [0])
    path = folder.rollouts_path / "step-000003.parquet"
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    page = microscope_page(folder)
    assert (page.groups, page.total, page.scale) == ([], 0, 0)


def test_a_page_of_a_hundred_thousand_rows_takes_half_a_second(folder):
    n, length = 100_000, 24
    words, picks = pa.array([f"w{i}" for i in range(97)]), torch.arange(n * length) % 97
    offsets = pa.array(range(0, n * length + 1, length), pa.int32())
    credit = torch.randn(n * length, generator=torch.Generator().manual_seed(0))
    number, empty = pa.array(range(n)), pa.nulls(n, pa.string())
    columns = {
        **{"step": pa.array([0] * n), "row": number, "group": pa.array([i // 8 for i in range(n)]), "task_id": number},
        **{"prompt": empty, "text": pa.array(["w0 w1"] * n), "answer": empty, "length": number, "version": number},
        **{"done": pa.array([True] * n), "truncated": pa.array([False] * n), "fault": empty},
        "reward": pa.array(credit[:n].numpy()),
        "credit": pa.ListArray.from_arrays(offsets, pa.array(credit.numpy())),
        "tokens": pa.ListArray.from_arrays(offsets, words.take(pa.array(picks.numpy()))),
    }
    pq.write_table(pa.table(columns), folder.rollouts_path / "step-000000.parquet", compression="zstd")
    # Processor time, for the machine may have other things to do.
    began = time.process_time()
    page = microscope_page(folder)
    assert time.process_time() - began < 0.5
    assert (page.total, len(page.groups), page.rows) == (n // 8, 3, n)
    assert page.groups[0].spread >= page.groups[1].spread >= page.groups[2].spread
