import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict

from guerdon.credit.hierarchical import hae, segment_tags, subgoal_penalties, two_level_gae
from guerdon.credit.step import gae

quick = settings(derandomize=True, deadline=None, max_examples=40)
NAN = float("nan")
DECAY = {"gamma": 0.9, "lam_turn": 0.95, "lam_seg": 0.95}


def doubles(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def golden(**changed):
    values = {
        "turn_reward": doubles([0, 0, 0, 1]),
        "low_values": doubles([0.1, 0.2, 0.3, 0.4]),
        "high_values": doubles([0.5, NAN, 0.6, NAN]).nan_to_num(9.0),
        "term_values": doubles([0.0, 0.0, 0.0, 0.0]),
        "boundary": torch.tensor([[True, False, True, False]]),
        "exists": torch.ones(1, 4, dtype=torch.bool),
        "end_value": torch.zeros(1, dtype=torch.float64),
    }
    return two_level_gae(**values | changed, **DECAY)


def test_golden_numbers():
    out = golden()
    torch.testing.assert_close(out.low, doubles([0.3707, 0.34, 0.573, 0.6]))
    torch.testing.assert_close(out.high, doubles([0.21685, 0, 0.3, 0]))
    # What the segment yields: 0.81 * 0.6, 0.9 * 0.6; then 0.9 * 1 and 1.
    torch.testing.assert_close(out.term, doubles([0.486, 0.54, 0.9, 1.0]))


def test_nothing_leaks_across_a_boundary():
    """The second segment's rewards and low values reach the first through its own high value alone."""
    out = golden(turn_reward=doubles([0, 0, 5, 7]), low_values=doubles([0.1, 0.2, -3, 8]))
    assert torch.equal(out.low[:, :2], golden().low[:, :2])
    assert torch.equal(out.term[:, :2], golden().term[:, :2])
    assert not torch.equal(out.high[:, :1], golden().high[:, :1])


def test_done_and_truncated_are_apart():
    ended, cut = golden(), golden(end_value=torch.tensor([2.0], dtype=torch.float64))
    torch.testing.assert_close(cut.low[0, 3] - ended.low[0, 3], torch.tensor(1.8, dtype=torch.float64))
    torch.testing.assert_close(cut.high[0, 2] - ended.high[0, 2], torch.tensor(0.81 * 2, dtype=torch.float64))


def by_definition(r, low, high, term, opens, end, gamma, lam_turn, lam_seg):
    """Segments as lists, sums as sums; one trajectory without holes."""
    starts = [m for m in range(len(r)) if opens[m] or m == 0]
    stops = [*starts[1:], len(r)]
    out_low, out_high, out_term = [0.0] * len(r), [0.0] * len(r), [0.0] * len(r)
    deltas, reaches = [], []
    for first, stop in zip(starts, stops, strict=True):
        beyond = high[stop] if stop < len(r) else end
        delta = [r[m] + gamma * (low[m + 1] if m + 1 < stop else beyond) - low[m] for m in range(first, stop)]
        for m in range(first, stop):
            out_low[m] = sum((gamma * lam_turn) ** (u - m) * delta[u - first] for u in range(m, stop))
            out_term[m] = sum(gamma ** (u - m) * r[u] for u in range(m, stop)) + gamma ** (stop - m) * beyond - term[m]
        total = sum(gamma**j * x for j, x in enumerate(r[first:stop]))
        deltas.append(total + gamma ** (stop - first) * beyond - high[first])
        reaches.append(gamma ** (stop - first) * lam_seg)
    for k, first in enumerate(starts):
        factor = 1.0
        for j in range(k, len(starts)):
            out_high[first] += factor * deltas[j]
            factor *= reaches[j]
    return out_low, out_high, out_term


@quick
@given(seed=st.integers(0, 10**6), gamma=st.floats(0.1, 1), lam=st.floats(0, 1))
def test_agrees_with_the_definition(seed, gamma, lam):
    random = torch.Generator().manual_seed(seed)
    r, low, high, term = torch.randn(4, 5, 8, generator=random, dtype=torch.float64)
    opens = torch.rand(5, 8, generator=random) > 0.6
    exists = torch.rand(5, 8, generator=random) > 0.2
    end = torch.randn(5, generator=random, dtype=torch.float64)
    garbage = [x.masked_fill(~exists, NAN) for x in (r, low, high, term)]
    options = {"gamma": gamma, "lam_turn": lam, "lam_seg": 0.7}
    out = two_level_gae(*garbage, opens, exists, end, **options)
    for i in range(5):
        here = exists[i]
        lists = [x[i][here].tolist() for x in (r, low, high, term, opens)]
        expected = by_definition(*lists, end[i].item(), gamma, lam, 0.7)
        for seen, wanted in zip(out, expected, strict=True):
            assert seen[i][here].tolist() == pytest.approx(wanted, abs=1e-9)
            assert (seen[i][~here] == 0).all()


def test_one_segment_is_the_discounted_return_minus_the_value():
    r = torch.randn(3, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    exists, boundary = torch.ones(3, 6, dtype=torch.bool), torch.zeros(3, 6, dtype=torch.bool)
    value = torch.full((3, 6), 0.3, dtype=torch.float64)
    zero = torch.zeros(3, dtype=torch.float64)
    out = two_level_gae(r, value, value, value, boundary, exists, zero, gamma=0.9, lam_seg=1.0)
    discounted = (r * 0.9 ** torch.arange(6)).sum(dim=1)
    torch.testing.assert_close(out.high[:, 0], discounted - 0.3)
    assert (out.high[:, 1:] == 0).all()
    # Within one segment the low level is plain GAE.
    flat = gae(r, value, exists, zero, torch.ones(3, dtype=torch.bool), gamma=0.9, lam=1.0, whiten=False)
    torch.testing.assert_close(out.low, flat.advantage)


def tokens():
    """Two turns of switch, subgoal, action; the second keeps its subgoal and repeats it."""
    turn = torch.tensor([[0, 0, 0, -1, 1, 1, 1]])
    mask = turn >= 0
    marks = {name: torch.zeros_like(mask) for name in ("switch", "subgoal", "action", "boundary")}
    for name, places in {"switch": [0, 4], "subgoal": [1, 5], "action": [2, 6], "boundary": [0, 1, 2]}.items():
        marks[name][0, places] = True
    return {
        "dense": doubles([0, 0, 0.5, NAN, 0, 0, 1]),
        "values": doubles([0.1, 0.2, 0.3, NAN, 0.4, 0.6, 0.5]),
        "marks": marks,
        "turn": turn,
        "mask": mask,
        "bootstrap": torch.tensor([NAN], dtype=torch.float64),
        "done": torch.tensor([True]),
    }


def test_each_kind_of_token_gets_the_credit_of_its_level():
    b = tokens()
    out = hae(**b, gamma=0.9, lam_turn=0.5)
    low2 = 1 - 0.5
    low1 = 0.5 + 0.9 * 0.5 - 0.3 + 0.45 * low2
    high, term1, term2 = 0.5 + 0.9 - 0.2, 0.5 + 0.9 - 0.1, 1 - 0.4
    torch.testing.assert_close(out.advantage, doubles([term1, high, low1, 0, term2, 0, low2]))
    torch.testing.assert_close(out.returns, doubles([1.4, 1.4, low1 + 0.3, 0, 1.0, 0.6, 1.0]))
    no_switch = b | {"marks": {name: x for name, x in b["marks"].items() if name != "switch"}}
    torch.testing.assert_close(hae(**no_switch, gamma=0.9, lam_turn=0.5).advantage[0, [0, 4]], torch.zeros(2).double())
    in_container = b | {"marks": TensorDict(b["marks"], [1])}
    assert torch.equal(hae(**in_container, gamma=0.9, lam_turn=0.5).advantage, out.advantage)


def test_without_tags_all_is_action_of_one_segment():
    b = tokens()
    none = torch.zeros_like(b["mask"])
    b["marks"] = {"subgoal": none, "action": b["mask"], "boundary": none}
    out = hae(**b)
    low = [1.5 - 0.1, 1 - 0.4]
    assert out.advantage[0].tolist() == pytest.approx([low[0]] * 3 + [0] + [low[1]] * 3)
    assert out.returns[0].tolist() == pytest.approx([1.5, 0.2, 0.3, 0, 1.0, 0.6, 0.5])


def test_levels_are_whitened_apart_over_the_turns_that_speak():
    random = torch.Generator().manual_seed(3)
    turn = torch.arange(4).repeat_interleave(2).expand(6, 8)
    mask = torch.rand(6, 8, generator=random) > 0.1
    kind = torch.arange(8) % 2
    marks = {
        "switch": torch.zeros_like(mask),
        "subgoal": (kind == 0) & mask,
        "action": (kind == 1) & mask,
        "boundary": (torch.rand(6, 4, generator=random) > 0.4).repeat_interleave(2, dim=1),
    }
    dense, values = torch.randn(2, 6, 8, generator=random, dtype=torch.float64)
    arguments = (dense, values, marks, turn, mask, torch.zeros(6).double(), torch.ones(6, dtype=torch.bool))
    out, plain = hae(*arguments, whiten=True, eps=0.0), hae(*arguments)
    for name in ("action", "subgoal"):
        spoken = marks[name] & (plain.advantage != 0)
        torch.testing.assert_close(out.advantage[spoken].mean().item(), 0.0, atol=1e-9, rtol=0)
        torch.testing.assert_close(out.advantage[spoken].std(correction=0).item(), 1.0)
    assert torch.equal(out.returns, plain.returns)


@quick
@given(seed=st.integers(0, 10**6))
def test_invariants(seed):
    random = torch.Generator().manual_seed(seed)
    turn = torch.randint(4, (5, 9), generator=random).sort(dim=1).values
    mask = torch.rand(5, 9, generator=random) > 0.3
    marks = {name: torch.rand(5, 9, generator=random) > 0.5 for name in ("switch", "subgoal", "action", "boundary")}
    dense, values = torch.randn(2, 5, 9, generator=random, dtype=torch.float64)
    b = {"dense": dense, "values": values, "marks": marks, "turn": turn, "mask": mask}
    b |= {"bootstrap": torch.randn(5, generator=random).double(), "done": torch.rand(5, generator=random) > 0.5}
    out = hae(**b)
    assert (out.advantage[~mask] == 0).all()
    assert (out.returns[~mask] == 0).all()
    assert out.advantage.isfinite().all()
    spoiled = b | {name: b[name].masked_fill(~mask, NAN) for name in ("dense", "values")}
    spoiled["turn"] = turn.masked_fill(~mask, -1)
    spoiled["bootstrap"] = b["bootstrap"].masked_fill(b["done"], NAN)
    assert torch.equal(hae(**spoiled).advantage, out.advantage)
    assert torch.equal(hae(**spoiled).returns, out.returns)
    order = torch.randperm(5, generator=random)
    moved = {n: {k: y[order] for k, y in x.items()} if n == "marks" else x[order] for n, x in b.items()}
    assert torch.equal(hae(**moved).advantage, out.advantage[order])
    wide = {n: torch.nn.functional.pad(b[n], (0, 2)) for n in ("dense", "values", "mask", "turn")}
    wide["marks"] = {k: torch.nn.functional.pad(x, (0, 2)) for k, x in marks.items()}
    assert torch.equal(hae(**b | wide).advantage[:, :9], out.advantage)
    assert torch.equal(hae(**b | wide).returns[:, :9], out.returns)


def test_missing_marks_are_named():
    b = tokens()
    with pytest.raises(ValueError, match="marks have no 'boundary', only subgoal, action; make them with segment_tags"):
        hae(**b | {"marks": {name: b["marks"][name] for name in ("subgoal", "action")}})


def test_penalties():
    exists = torch.tensor([[True, True, True, True], [True, True, False, False]])
    kept = torch.tensor([[False, True, True, False], [False, True, True, True]])
    changed = torch.tensor([[True, False, True, True], [False, False, True, True]])
    invalid = torch.tensor([[True, False, False, False], [False, False, True, False]])
    out = subgoal_penalties(exists, kept, changed, invalid)
    torch.testing.assert_close(out, torch.tensor([[-0.1, -0.3, -0.6, 0.0], [0.0, -0.3, 0.0, 0.0]]))
    out = subgoal_penalties(exists, kept, changed, invalid, inconsistent=0.0, invalid_action=0.0, spread="trajectory")
    torch.testing.assert_close(out.sum(dim=1), torch.tensor([-0.3 * 2 / 4, -0.3 / 2]))


def test_tags_are_read_turn_by_turn():
    first = ["<switch>", "KEEP", "</switch>", "<subgoal>", "key", "</subgoal>", "<action>", "go", "</action>"]
    second = ["<switch> SWI", "TCH</switch>", "<subgoal>door", "</subgoal>", "go"]
    third = ["go", " north"]
    fourth = ["<switch>KEEP</switch>", "<subgoal>", "never closed"]
    text = [first + second + third, fourth]
    turn = torch.full((2, 18), -1)
    turn[0, :9], turn[0, 10:15], turn[0, 16:18] = 0, 1, 2
    turn[1, 2:5] = 0
    marks = segment_tags(text, turn >= 0, turn)
    assert marks["switch"][0].nonzero().flatten().tolist() == [0, 1, 2, 10, 11]
    assert marks["subgoal"][0].nonzero().flatten().tolist() == [3, 4, 5, 12, 13]
    assert marks["action"][0].nonzero().flatten().tolist() == [6, 7, 8, 14, 16, 17]
    assert marks["boundary"][0].nonzero().flatten().tolist() == [*range(9), *range(10, 15)]
    assert marks["subgoal"][1].nonzero().flatten().tolist() == [3, 4]
    assert not marks["action"][1].any()
    none = torch.full((1, 3), -1)
    assert not any(x.any() for x in segment_tags([[]], none >= 0, none).values())
