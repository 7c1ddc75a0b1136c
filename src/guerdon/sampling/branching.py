"""Groups that branch over a known set of texts: beam search along the tree of their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from guerdon.engine.decoding import decoder
from guerdon.engine.filters import keep_listed
from guerdon.engine.fused import fused
from guerdon.engine.generate import Written
from guerdon.engine.padding import right_pad
from guerdon.engine.reading import LanguageModel
from guerdon.errors import RecipeError
from guerdon.objectives.entropy import categorical_entropy
from guerdon.registry import register
from guerdon.rollouts import Rollouts
from guerdon.sampling.sources import Draw, Source
from guerdon.tasks.base import Starts

if TYPE_CHECKING:
    from guerdon.policies.language import LanguagePolicy
    from guerdon.policies.language_sampling import LanguageSampling


class TrieConstraint:
    """The tree of the tokens of a set of items; as a logits processor it lets nothing but these items be written.

    Node 0 is the root. Items end with a token of their own, so that one may be the beginning of another.

    Attributes:
        tokens: (nodes, W) tokens that may follow each node, -1 in places of no use.
        children: (nodes, W) where they lead.
        depth: tokens of the longest item.
        size: number of items.

    Args:
        items: token ids of each item, its end token included.

    Raises:
        ValueError: when there are no items, one is empty, or one goes on where another ends.
    """

    def __init__(self, items: Sequence[Sequence[int]]) -> None:
        if not items or not all(len(item) for item in items):
            raise ValueError(f"got {len(items)} items, wanted one at least, and none of them without tokens")
        below: list[dict[int, int]] = [{}]
        ends = set()
        for item in items:
            node = 0
            for token in item:
                if token not in below[node]:
                    below[node][token] = len(below)
                    below.append({})
                node = below[node][token]
            ends.add(node)
        if any(below[node] for node in ends):
            raise ValueError("an item goes on where another ends; close each by an end token that none holds elsewhere")
        self.tokens, _ = right_pad([list(tokens) for tokens in below], -1)
        self.children, _ = right_pad([list(tokens.values()) for tokens in below], 0)
        self.depth, self.size = max(map(len, items)), len(ends)

    def node(self, tokens: Tensor) -> Tensor:
        """Where rows (B,T) of tokens lead; -1 for what no item begins with."""
        at = torch.zeros(len(tokens), dtype=torch.int64)
        for token in tokens.unbind(dim=1):
            found = (self.tokens[at] == token.unsqueeze(1)) & (at >= 0).unsqueeze(1) & (token >= 0).unsqueeze(1)
            at = torch.where(found.any(dim=1), (self.children[at] * found).sum(dim=1), -1)
        return at

    def listed(self, tokens: Tensor) -> Tensor:
        """Tokens (B,W) that may follow rows (B,T), -1 in places of no use; none after a whole item or off the tree."""
        at = self.node(tokens)
        return self.tokens[at].masked_fill((at < 0).unsqueeze(1), -1)

    def __call__(self, logits: Tensor, written: Written) -> Tensor:
        """Log-probabilities of logits (B,V), with -1e6 for tokens that no item goes on with."""
        return keep_listed(logits.log_softmax(dim=-1), self.listed(written.tokens))


class Beams(NamedTuple):
    """What a beam search found for P prompts: W items of each, best first, of at most T tokens.

    Attributes:
        tokens: (P,W,T) right-padded.
        mask: (P,W,T) true on tokens.
        score: (P,W) log-probability of each item under the model, nothing being ruled out.
        logp, entropy: (P,W,T) log-probability of each token, and entropy of the distribution that it comes from: of
            the model, or of the model among the tokens that were allowed.
    """

    tokens: Tensor
    mask: Tensor
    score: Tensor
    logp: Tensor
    entropy: Tensor


@torch.no_grad()
def constrained_beams(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    constraint: TrieConstraint,
    *,
    width: int,
    pad: int,
    temperature: float = 1.0,
    within: bool = False,
) -> Beams:
    """Find the likeliest items of each prompt, as far as a beam of this width sees them.

    Items are compared by the sum of their tokens' log-probabilities. All beams of all prompts grow together, one
    token per step; an item that has ended keeps its score and its place until better ones take it.

    Args:
        model: writes.
        prompts: token ids of each.
        constraint: the items.
        width: beams of each prompt, which are all different items.
        pad: token id that fills unused positions.
        temperature: divides the logits.
        within: give ``logp`` and ``entropy`` among the allowed tokens.

    Raises:
        RecipeError: when there are fewer items than beams.
    """
    if width > constraint.size:
        raise RecipeError(
            f"a beam of {width} different items was asked for, and there are {constraint.size}; set "
            f"sampling.group_size to at most {constraint.size}"
        )
    score = torch.full((len(prompts), width), float("-inf"))
    score[:, 0] = 0.0  # equal beginnings count once: the other beams are empty until there is something for them
    node = parent = torch.zeros(len(prompts) * width, dtype=torch.int64)
    tokens, logp, entropy = node.new_zeros(len(node), 0), torch.zeros(len(node), 0), torch.zeros(len(node), 0)
    with fused(model) as writer:
        writing = decoder(writer, [p for p in prompts for _ in range(width)], capacity=constraint.depth, pad=pad)
        for step in range(constraint.depth):
            if step:
                writing.select(parent)
                writing.step(torch.where(tokens[:, -1] < 0, pad, tokens[:, -1]))
            seen = (model.project(writing.states).float() / temperature).log_softmax(dim=-1)
            listed = constraint.tokens[node]
            parent, token, node, score = _grow(constraint, seen, node, score)
            if within:
                seen = keep_listed(seen, listed).log_softmax(dim=-1)
            now = torch.stack([seen[parent, token.clamp(min=0)], categorical_entropy(seen)[parent]], dim=1)
            now = now.masked_fill(token.unsqueeze(1) < 0, 0.0)
            tokens = torch.cat([tokens[parent], token.unsqueeze(1)], dim=1)
            logp, entropy = (torch.cat([x[parent], now[:, i : i + 1]], dim=1) for i, x in enumerate((logp, entropy)))
    tokens, logp, entropy = (x.view(len(prompts), width, -1) for x in (tokens, logp, entropy))
    return Beams(torch.where(tokens < 0, pad, tokens), tokens >= 0, score, logp, entropy)


def _grow(
    constraint: TrieConstraint, log_probs: Tensor, node: Tensor, score: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The best continuations by one token of P times W beams.

    Args:
        constraint: the items.
        log_probs: (P W,V).
        node: (P W,) where each beam stands in the tree.
        score: (P,W) of each beam; -inf for an empty one.

    Returns:
        Of each beam then, prompt by prompt and best first: the beam (P W,) that it continues, its token (P W,), -1 if
        it had ended before, its node (P W,) and its score (P,W).
    """
    listed, first = constraint.tokens[node], torch.arange(len(score)).unsqueeze(1) * score.shape[1]
    gain = log_probs.gather(1, listed.clamp(min=0)).masked_fill(listed < 0, float("-inf"))
    gain[(listed < 0).all(dim=1), 0] = 0.0  # what has ended stays what it is
    total = (score.reshape(-1, 1) + gain).view(len(score), -1)
    ordered = total.sort(dim=1, descending=True, stable=True)  # equal ones in the order of the tree
    best = ordered.indices[:, : score.shape[1]]
    parent, pick = (best // gain.shape[1] + first).flatten(), (best % gain.shape[1]).flatten()
    token = listed[parent, pick]
    node = torch.where(token < 0, node[parent], constraint.children[node[parent], pick])
    return parent, token, node, ordered.values[:, : score.shape[1]]


def constrained_beam_group(
    policy: LanguagePolicy,
    starts: Starts,
    options: LanguageSampling,
    constraint: TrieConstraint,
    *,
    mask_logp: bool = False,
) -> Rollouts:
    """Let the group of each problem be its best items, in their order: all of them valid, no two alike.

    This is no independent sample: likely items are certain to be drawn and unlikely ones certain not to be, so a
    policy gradient on it is biased. It serves to compare the items that the policy confuses.

    Args:
        policy: ranks the items.
        starts: problems, the same number of trajectories of each, side by side: the width of the beam.
        options: whose temperature and budget count.
        constraint: the items, as ``policy.encode_answer`` encodes them.
        mask_logp: let log-probabilities, now and whenever the policy is evaluated on these rollouts, be those among
            the tokens that the constraint allows; of all tokens by default, as the source has it.

    Raises:
        RecipeError: when the options cut or filter items, there are fewer items than trajectories, or groups differ in
            size.

    Source: Tan et al. 2025, arXiv 2510.12211, and its code.
    """
    width = int((starts.group == starts.group[0]).sum())
    keys = starts.group[::width]
    if not torch.equal(keys.repeat_interleave(width), starts.group) or len(keys.unique()) < len(keys):
        raise RecipeError("a beam needs groups of one size, each in adjacent rows; use Starts.repeat")
    filters = {name: getattr(options, name) for name in ("top_k", "top_p", "min_p", "stop")}
    changed = [name for name, value in filters.items() if value != type(options).model_fields[name].default]
    if changed or options.max_new_tokens < constraint.depth:
        what = f"sampling.{changed[0]} is set" if changed else f"max_new_tokens is {options.max_new_tokens}"
        raise RecipeError(
            f"a beam searches whole items of up to {constraint.depth} tokens and draws nothing, but {what}; remove "
            f"top_k, top_p, min_p and stop, and set sampling.max_new_tokens to {constraint.depth} or more"
        )
    prompts = policy.encode_prompts([problem.prompt for problem in starts.problems])
    policy.module.eval()
    found = constrained_beams(
        policy.model,
        prompts[::width],
        constraint,
        width=width,
        pad=policy.pad,
        temperature=options.temperature,
        within=mask_logp,
    )
    longest = int(found.mask.sum(dim=2).max())
    tokens, mask, logp, entropy = (
        x.flatten(0, 1)[:, :longest] for x in (found.tokens, found.mask, found.logp, found.entropy)
    )
    ended = torch.ones(len(tokens), dtype=torch.bool)  # items are whole
    rollouts = policy.as_rollouts(starts, prompts, tokens, mask, logp, options, finished=ended, entropy=entropy)
    if mask_logp:
        before = [constraint.listed(tokens[:, :t]) for t in range(longest)]
        rollouts.payload["listed"] = torch.stack(before, dim=1)
    return rollouts


@register("source", "constrained_beam", paper="Tan et al. 2025, arXiv 2510.12211")
class ConstrainedBeam(Source):
    """The group of each problem is what beam search finds among given items: ``group_size`` of them, best first.

    It stands for the policy's plain samples, which are not drawn. Evaluation goes on to sample freely. See
    ``constrained_beam_group`` for what this does to the gradient.

    Args:
        items: file with an item per line; the task's own ``items`` by default.
        mask_logp: see ``constrained_beam_group``. Logits of a whole batch are then held at once.

    Source: Tan et al. 2025, arXiv 2510.12211. (Masked log-probabilities are ours.)
    """

    when = "sampling"
    replaces = True

    def __init__(self, *, items: str | None = None, mask_logp: bool = False) -> None:
        self.items, self.mask_logp = items, mask_logp
        self._constraint: TrieConstraint | None = None

    def draw(self, draw: Draw) -> Rollouts:
        """The groups of the batch."""
        assert draw.starts is not None
        policy = draw.policy
        from guerdon.policies.language import LanguagePolicy
        from guerdon.policies.language_sampling import LanguageSampling

        if not isinstance(policy, LanguagePolicy):
            raise RecipeError(
                f"source 'constrained_beam' needs a policy that writes, and '{type(policy).__name__}' does not; use "
                "policy 'tiny_lm' or 'causal_lm'"
            )
        if self._constraint is None:
            self._constraint = TrieConstraint([policy.encode_answer(item) for item in self._texts(draw)])
        assert isinstance(draw.sampling, LanguageSampling)
        return constrained_beam_group(policy, draw.starts, draw.sampling, self._constraint, mask_logp=self.mask_logp)

    def _texts(self, draw: Draw) -> list[str]:
        if self.items is None:
            known = getattr(draw.task, "items", None)
            if not known:
                raise RecipeError(
                    f"source 'constrained_beam': task '{type(draw.task).__name__}' has no 'items'; give the source a "
                    "file with an item per line as 'items'"
                )
            return list(known)
        path = Path(self.items)
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        texts = [line for line in lines if line.strip()]
        if not texts:
            raise RecipeError(f"source 'constrained_beam': '{self.items}' holds no items; write one per line")
        return texts
