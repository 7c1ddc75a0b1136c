import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.monitor.transcript import transcript


def said(turns) -> list[tuple[int, list[str], str | None]]:
    return [(turn.number, [token.text for token in turn.tokens], turn.heard) for turn in turns]


def test_words_get_their_spaces_back_and_special_tokens_stay_signs():
    turns, whole = transcript("take key done", ["take", "key", "<eos>", None, "<eos>"], [0, 0, 0, None, 1])
    assert whole
    assert said(turns) == [(0, ["take", " key", "<eos>"], " done"), (1, ["<eos>"], None)]
    assert [token.special for token in turns[0].tokens] == [False, False, True]
    assert [token.place for turn in turns for token in turn.tokens] == [0, 1, 2, 4]


def test_pieces_of_words_and_characters_are_read_as_they_stand():
    assert said(transcript("SELECT name", ["SE", "LECT", " name"])[0]) == [(0, ["SE", "LECT", " name"], None)]
    assert said(transcript("a b", ["a", " ", "b"])[0]) == [(0, ["a", " ", "b"], None)]
    assert said(transcript("  a", ["  ", "a"])[0])[0][1][-1] == "a"


def test_what_others_wrote_may_hold_the_very_words_of_the_policy():
    # "look" stands twice in what the environment says; the number of tokens between tells which one is the policy's.
    text = "go You can: look, go, wait. look You see nothing."
    tokens = ["go", *[None] * 5, "look", *[None] * 3]
    turns, whole = transcript(text, tokens, [0, *[None] * 5, 1, *[None] * 3])
    assert whole
    assert said(turns) == [(0, ["go"], " You can: look, go, wait. "), (1, ["look"], " You see nothing.")]


def test_words_are_counted_where_every_token_is_one():
    # By their lengths in characters, the other "look" would be the nearer one.
    tokens = ["key", *[None] * 5, "look", None, None]
    turns, _ = transcript("key can key examine inventory look look You key", tokens)
    assert [turn.heard for turn in turns] == [" can key examine inventory look ", " You key"]


def test_tools_that_answer_without_spaces():
    tokens = [*"1+1", None, *"=2"]
    assert said(transcript("1+12=2", tokens)[0]) == [(0, ["1", "+", "1"], "2"), (1, ["=", "2"], None)]


def test_parts_of_a_character_are_passed_over():
    turns, whole = transcript("né!", ["n", "\ufffd", "\ufffd", "!"])
    assert whole
    assert "".join(token.text for token in turns[0].tokens if "\ufffd" not in token.text).startswith("n")
    assert turns[0].tokens[-1].text.endswith("!")


@pytest.mark.parametrize("text", [None, "something else", ""])
def test_tokens_that_are_not_in_the_text_are_given_as_they_are(text):
    turns, whole = transcript(text, ["a", "b", None, None, "c"])
    assert not whole
    assert said(turns) == [(0, ["a", "b"], None), (1, ["c"], None)]
    assert [turn.unread for turn in turns] == [2, 0]


def test_without_tokens_there_are_no_turns():
    assert transcript("text", []) == ([], False)
    assert transcript("text", [None, None])[0] == []


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.lists(st.sampled_from("abc"), min_size=1, max_size=4), st.integers(1, 5)), max_size=6))
def test_a_conversation_of_single_letters_is_put_together_again(turns):
    """Whatever the policy and the others wrote of the same few words, nothing is lost and the lengths are right."""
    words, tokens = [], []
    for own, others in turns:
        words += [*own, *["a"] * others]
        tokens += [*own, *[None] * others]
    found, whole = transcript("".join(words), tokens)
    assert whole == bool(turns)
    assert "".join("".join(token.text for token in turn.tokens) + (turn.heard or "") for turn in found) == "".join(
        words
    )
    assert [len(turn.heard or "") for turn in found] == [others for _, others in turns]


def test_a_text_that_repeats_itself_costs_little():
    tokens = (["a"] * 50 + [None] * 50) * 20
    turns, whole = transcript("a" * 2000, tokens)
    assert whole
    assert {len(turn.heard or "") for turn in turns} == {50}
