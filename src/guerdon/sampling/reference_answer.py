"""The reference answer, written behind what the policy reasoned."""

from __future__ import annotations

from typing import Any

import torch

from guerdon.errors import RecipeError
from guerdon.policies.rows import present_tokens
from guerdon.registry import register
from guerdon.rollouts import Rollouts
from guerdon.sampling.sources import Draw, Source


@register("source", "reference_answer", paper="Likelihood-Based Reward Designs for General LLM Reasoning, 2026")
class ReferenceAnswer(Source):
    """The policy's own completions, each followed by the reference answer of its problem.

    The tokens of the reference are read in that place and carry the policy's log-probabilities; they are marked
    ``external``, so objectives and terms that don't name the field never see them. Reward ``answer_likelihood`` is what
    they are for, and term ``answer_term``. ``text`` stays what the policy wrote. Let a completion end where
    an answer would begin, by ``sampling.stop``: its end token, if it wrote one, is read too. The tokens of an answer
    are those of its text alone, whatever stands before it, so all trajectories of a problem are scored by the same.

    It stands for the plain sample, in tasks of one turn and without a tool. What is read when evaluating has no
    reference.

    Args:
        form: how an answer is given, with ``{}`` where it stands; what comes before is read and not scored.
        end: whether the end token behind the answer is scored as well.

    Source: Likelihood-Based Reward Designs for General LLM Reasoning, 2026.
    """

    when = "sampling"
    replaces = True

    def __init__(self, *, form: str = "{}", end: bool = False) -> None:
        if form.count("{}") != 1:
            raise RecipeError(f"source 'reference_answer': form is {form!r}, wanted a text with one {{}}")
        self.before, self.after = form.split("{}")
        self.end = end

    def draw(self, draw: Draw) -> Rollouts:
        """The completions with their references."""
        assert draw.starts is not None
        options: Any = draw.sampling
        if getattr(options, "environments", None) is not None or getattr(options, "tool", None) is not None:
            raise RecipeError(
                "source 'reference_answer' writes behind a completion of one turn, but this recipe has environments or "
                "a tool; use credit 'igpo', which reads the answer's likelihood at every turn"
            )
        plain = draw.policy.sample(draw.starts, options, seed=draw.seed)
        return with_references(draw.policy, plain, draw, self.before, self.after, end=self.end)


def with_references(policy: Any, plain: Rollouts, draw: Draw, before: str, after: str, *, end: bool) -> Rollouts:
    """Completions of one turn with the reference answers behind them, read by the policy.

    Args:
        policy: a language policy.
        plain: its completions.
        draw: whose starts they are of.
        before, after: what stands around an answer; the latter is scored with it.
        end: whether the policy's end token follows and is scored.
    """
    assert draw.starts is not None
    assert plain.tokens is not None
    missing = next((row for row, answer in enumerate(plain.answer or [None] * len(plain)) if answer is None), None)
    if missing is not None:
        raise RecipeError(
            f"source 'reference_answer' needs the answer of every problem, and that of sample {missing} has none; use "
            "a task whose problems carry answers"
        )
    lead = policy.encode(before) if before else []
    texts = [str(answer) + after for answer in plain.answer or ()]
    known = {text: [*policy.encode(text), *([policy.eos] if end else [])] for text in dict.fromkeys(texts)}
    written = [row[kept].tolist() for row, kept in zip(plain.tokens, plain.mask, strict=True)]
    rows = [[*own, *lead, *known[text]] for own, text in zip(written, texts, strict=True)]
    width = max(map(len, rows), default=0)
    tokens = torch.full((len(rows), width), policy.pad)
    present, mask, external = (torch.zeros(tokens.shape, dtype=torch.bool) for _ in range(3))
    old_logp, entropy = torch.zeros(tokens.shape), torch.zeros(tokens.shape)
    for i, (row, own, text) in enumerate(zip(rows, written, texts, strict=True)):
        tokens[i, : len(row)] = torch.tensor(row)
        present[i, : len(row)] = True
        mask[i, : len(own)] = True
        external[i, len(row) - len(known[text]) : len(row)] = True
        old_logp[i, : len(own)] = plain.old_logp[i][plain.mask[i]]
        if plain.entropy is not None:
            entropy[i, : len(own)] = plain.entropy[i][plain.mask[i]]
    prompts = present_tokens(plain.payload["prompt_tokens"], plain.payload["attention"])
    out = policy.as_rollouts(
        draw.starts,
        prompts,
        tokens,
        mask | external,
        old_logp,
        draw.sampling,
        finished=plain.done,
        present=present,
        external=external,
        entropy=entropy,
    )
    policy.module.eval()
    with torch.no_grad():
        read = policy.evaluate(out)
    out.old_logp = torch.where(external, read.logp, old_logp)
    out.entropy = torch.where(external, read.entropy, entropy)
    out.text = plain.text
    return out
