import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.errors import MissingField, RecipeError
from guerdon.integrations.columns import COMMON, as_rollouts, bind_signal, identity, text_of, turns_of
from guerdon.rollouts import Fields

quick = settings(derandomize=True, deadline=None, max_examples=30)


def test_turns_are_runs_without_a_gap():
    mask = torch.tensor([[1, 1, 0, 1, 0], [0, 0, 0, 0, 0], [0, 1, 0, 0, 1]]).bool()
    assert turns_of(mask).tolist() == [[0, 0, -1, 1, -1], [-1] * 5, [-1, 0, -1, -1, 1]]


@quick
@given(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=4))
def test_turns_are_counted_as_one_reads(rows):
    seen = []
    for row in rows:
        turn, before, out = -1, False, []
        for here in row:
            turn += here and not before
            out.append(turn if here else -1)
            before = here
        seen.append(out)
    assert turns_of(torch.tensor(rows)).tolist() == seen


def test_texts_of_conversations():
    chat = [{"role": "assistant", "content": "one"}, {"role": "tool", "content": [{"type": "text", "text": "two"}]}]
    assert text_of("plain") == "plain"
    assert text_of(chat) == "one\ntwo"
    assert text_of([{"role": "assistant", "content": None}]) == ""
    assert identity("plain") == identity([{"role": "user", "content": "plain"}]) != identity("other")


def test_a_batch_has_the_fields_that_are_promised():
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]]).bool()
    batch = as_rollouts(
        mask,
        torch.tensor([0, 0]),
        prompts=["q", "q"],
        completions=["ab", "abc"],
        columns={"answer": ["x", "x"], "level": [1, 2]},
        truncated=torch.tensor([False, True]),
        tokens=torch.tensor([[5, 6, 9], [5, 6, 7]]),
    )
    batch.rewards["r"] = torch.tensor([1.0, 0.0])
    fields = Fields(batch, step=0, seed=0, component_names=("r",), component_weights=torch.ones(1))
    assert COMMON | {"tokens", "answer"} <= {*fields}
    assert batch.tokens.tolist() == [[5, 6, 0], [5, 6, 7]]
    assert batch.done.tolist() == [True, False]
    assert [dict(row) for row in batch.metadata] == [{"answer": "x", "level": 1}, {"answer": "x", "level": 2}]


def test_what_the_other_trainer_cannot_give_is_refused():
    with pytest.raises(MissingField, match=r"'gae'.*'values'"):
        bind_signal([], "gae", COMMON, "TRL's GRPOTrainer")
    with pytest.raises(RecipeError, match="did you mean 'grpo'"):
        bind_signal([], "gpro", COMMON, "TRL's GRPOTrainer")
    with pytest.raises(RecipeError, match="no option 'epps'"):
        bind_signal([], {"name": "grpo", "epps": 1}, COMMON, "TRL's GRPOTrainer")
    with pytest.raises(RecipeError, match="credit is empty"):
        bind_signal([], [], COMMON, "TRL's GRPOTrainer")
    shaping, credit = bind_signal([], ["gdpo", "difficulty_weights"], COMMON, "TRL's GRPOTrainer")
    assert [bound.name for bound in (*shaping, *credit)] == ["weighted_sum", "gdpo", "difficulty_weights"]
