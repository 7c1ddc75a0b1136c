import pytest
import torch

from guerdon.engine.generate import Completions, GenerationOptions
from guerdon.engine.turns import Context, Reply, Row, rollout_in_turns


class Writer:
    """Writes the number of tokens that it has been asked for, each one more than the last one read."""

    def __init__(self):
        self.read = []

    def __call__(self, prefixes, settings, *, seed, rows, budgets):
        self.read.append([list(prefix) for prefix in prefixes])
        out = Completions.blank(len(prefixes), max(budgets), 0, 0)
        for row, (prefix, budget) in enumerate(zip(prefixes, budgets, strict=True)):
            out.tokens[row, :budget] = prefix[-1] + 1 + torch.arange(budget)
            out.mask[row, :budget] = True
            out.logp[row, :budget] = -1.0
        return out


class Says:
    """Replies the same to every turn, and ends rows after some turns."""

    def __init__(self, tokens, turns, budget=2):
        self.tokens, self.turns, self.length = tokens, turns, budget
        self.heard = dict.fromkeys(range(len(turns)), 0)

    def budget(self, row, actions):
        return self.length if self.turns[row] else 0

    def reply(self, rows, written, ended):
        replies = []
        for row in rows:
            self.heard[row] += 1
            over = self.heard[row] >= self.turns[row]
            replies.append(Reply(goes_on=False, finished=True) if over else Reply(self.tokens))
        return replies


def play(prompts, partner, **options):
    writer = Writer()
    settings = GenerationOptions(max_new_tokens=9)
    out = rollout_in_turns(writer, prompts, settings, partner, seed=0, pad=0, path="turn", **options)
    return out, writer.read


def test_turns_and_replies_alternate():
    out, read = play([[10], [20]], Says([90, 91], [3, 1]))
    assert out.tokens.tolist() == [[11, 12, 90, 91, 92, 93, 90, 91, 92, 93], [21, 22, 0, 0, 0, 0, 0, 0, 0, 0]]
    assert out.turn.tolist() == [[0, 0, -1, -1, 1, 1, -1, -1, 2, 2], [0, 0, *[-1] * 8]]
    assert torch.equal(out.mask, out.turn >= 0)
    assert out.present.sum(dim=1).tolist() == [10, 2]
    assert torch.equal(out.logp, -out.mask.float())
    assert out.finished.all()
    assert read[0] == [[10], [20]]
    assert read[2] == [[10, 11, 12, 90, 91, 92, 93, 90, 91]]
    assert (out.begins == 0).all()


def test_a_row_without_a_budget_writes_nothing():
    out, read = play([[10], [20]], Says([90], [0, 1]))
    assert out.present.sum(dim=1).tolist() == [0, 2]
    assert not out.finished[0]
    assert read == [[[20]]]


def test_a_context_that_is_full_ends_a_row_before_the_reply():
    out, _ = play([[10]], Says([90, 91], [5]), context=Context(limit=6))
    assert out.tokens.tolist() == [[11, 12]]  # prompt, turn and reply take 5, and the next turn 2 more
    assert not out.finished[0]
    out, _ = play([[10]], Says([90, 91], [5]), context=Context(limit=7))
    assert out.tokens.tolist() == [[11, 12, 90, 91, 92, 93]]


@pytest.mark.parametrize(
    ("truncation", "read", "begins"),
    [
        ("drop_oldest", [10, 90, 91, 92, 93, 90, 91], 2),
        ("discard_all", [10, 90, 91], 6),
    ],
)
def test_what_does_not_fit_is_left_out(truncation, read, begins):
    out, seen = play([[10]], Says([90, 91], [3]), context=Context(limit=9, truncation=truncation))
    assert seen[1] == [[10, 11, 12, 90, 91]]
    assert seen[2] == [read]
    assert out.begins[0, out.turn[0] == 1].tolist() == [0, 0]
    assert out.begins[0, out.turn[0] == 2].tolist() == [begins, begins]
    assert out.finished[0]


def test_a_reply_that_never_fits_ends_the_row():
    for truncation in ("stop", "drop_oldest", "discard_all"):
        out, _ = play([[10]], Says([90] * 6, [3]), context=Context(limit=8, truncation=truncation))
        assert out.tokens.tolist() == [[11, 12]]


@pytest.mark.parametrize("turns", [0, 1, 2])
def test_a_part_of_a_row_can_be_gone_on_with(turns):
    prompts = [[10], [20]]
    out, _ = play(prompts, Says([90, 91], [3, 3]))
    begun = [Row.part(prompt, out, row, turns) for row, prompt in enumerate(prompts)]
    assert [row.turns for row in begun] == [turns, turns]
    assert [row.actions for row in begun] == [2 * turns, 2 * turns]
    partner = Says([90, 91], [3, 3])
    partner.heard = {0: turns, 1: turns}
    again, _ = play(prompts, partner, begun=begun)
    for name in ("tokens", "turn", "mask", "logp", "begins", "present"):
        assert torch.equal(getattr(again, name), getattr(out, name)), name


def test_rows_that_end_are_handed_over():
    seen = []
    play(
        [[10], [20], [30]], Says([90], [2, 1, 2]), ended=lambda rows, out: seen.append((rows.tolist(), len(out.tokens)))
    )
    assert seen == [([1], 3), ([0, 2], 3)]
