"""Rewards of the parts of a text from how much likelier they make what follows in a chain known to be good."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from guerdon.credit.grouping import grouped
from guerdon.errors import RecipeError, nearest
from guerdon.registry import register
from guerdon.rewards.forms import Score, reward

_PAPER = "P2S: Probabilistic Process Supervision for General-Domain Reasoning Question Answering"


def path_faithfulness(
    given: Tensor, masked: Tensor, length: Tensor, valid: Tensor | None = None, *, normalise: bool = True
) -> Tensor:
    """What each beginning of a text does for the end of a good chain, at the end that it does most for.

    PFR_i = max_t [log pi(s_t | q, p_i) - log pi(s_t | q, mask(p_i))] / |s_t|

    p_i are the first i parts of the text, mask(p_i) as many placeholders, s_t the good chain from its part t on. A
    beginning that says no more than placeholders do gets 0. Without the division the shortest and the longest ends
    are not on one scale, and the choice of t is one of length.

    Args:
        given, masked: (N,M,S) log-probability of S ends after M beginnings, and after placeholders.
        length: (S,) or (N,S) tokens of each end.
        valid: (N,M,S) which of them there are; all by default. Nothing else is read.
        normalise: divide by the length of the end.

    Returns:
        (N,M); 0 where there is no end.

    Source: P2S, as a detailed note states it; the division is ours.
    """
    gain = given - masked
    if normalise:
        scale = length if length.ndim == 2 else length.expand(len(gain), -1)
        gain = gain / scale.clamp(min=1).unsqueeze(1)
    if valid is not None:
        gain = gain.masked_fill(~valid.bool(), float("-inf"))
    best = gain.amax(dim=2) if gain.shape[2] else gain.new_full(gain.shape[:2], float("-inf"))
    return torch.where(best.isfinite(), best, 0.0)


def faithfulness_reward(faithfulness: Tensor, count: Tensor, *, slope: float = 10.0) -> Tensor:
    """Mean over the parts of a text, in which later ones weigh more.

    R = sum_i w_i PFR_i / sum_i w_i,  w_i = sigmoid(slope (i / M - 1/2)),  i = 1 .. M

    Args:
        faithfulness: (N,K) PFR of each part; nothing is read beyond the last.
        count: (N,) M of each text.
        slope: steepness of the weights; 0 gives the mean.

    Returns:
        (N,); 0 for a text without parts.

    Source: P2S; the source's slope was not seen.
    """
    part = torch.arange(1, faithfulness.shape[1] + 1, device=faithfulness.device)
    share = part / count.clamp(min=1).unsqueeze(1)
    weight = torch.where(share <= 1, torch.sigmoid(slope * (share - 0.5)), 0.0).to(faithfulness)
    weight = torch.where((count > 0).unsqueeze(1), weight, 0.0)
    total = torch.where(weight > 0, faithfulness * weight, 0.0).sum(dim=1)
    return total / weight.sum(dim=1).clamp(min=1e-30)


@reward("path_faithfulness", paper=_PAPER)
def path_faithfulness_reward(metadata: Mapping[str, Any], *, slope: Annotated[float, Field(ge=0)] = 10.0) -> Score:
    """How faithful the beginnings of an answer are to a chain known to be good, see ``faithfulness_reward``.

    Source ``gold_chains`` writes what is needed to the metadata, under ``path_faithfulness``.

    Args:
        metadata: what is known of the problem, and of the answer.
        slope: by how much later parts weigh more.

    Returns:
        The mean; it does not apply where there was no good chain, nor in evaluation. Its detail holds the ``parts``.

    Source: P2S.
    """
    parts = (metadata or {}).get("path_faithfulness")
    if not parts:
        return Score(0.0, valid=False)
    row = torch.tensor([parts], dtype=torch.float64)
    value = faithfulness_reward(row, torch.tensor([len(parts)]), slope=slope)
    return Score(float(value), detail={"parts": [round(x, 4) for x in parts]})


@register("shaping", paper=_PAPER)
def outcome_or_process(
    components: Tensor,
    component_names: Sequence[str],
    group: Tensor,
    step: int,
    *,
    outcome: str,
    process: str,
    form: str | None = None,
    penalty: float = -1.0,
    threshold: float = 0.0,
    begin: Annotated[int, Field(ge=0)] = 0,
) -> tuple[Tensor, dict[str, float]]:
    """The outcome in groups with a success, a reward of the process in groups without, and a penalty for bad form.

    r = penalty if the form is bad;  else the outcome, if any of the group succeeded;  else the process reward

    A reward of the process is a stand-in: it takes part where the outcome says nothing and leaves as soon as it does.

    Args:
        components: (N,K) raw rewards; nan where one does not apply. A process reward that does not apply is 0.
        component_names: their names.
        group: (N,) key of the trajectories that share a start.
        step: training step.
        outcome, process: names of the two rewards. Weights of the recipe are not read.
        form: name of the reward that is above ``threshold`` where the form is good; none, and the form always is.
        penalty: reward where it is not. A process reward may be lower still.
        threshold: outcome above which a trajectory is a success.
        begin: step from which on; before it the reward is that of the form, 0 or ``penalty``.

    Returns:
        (N,) reward; the shares of trajectories rewarded for the process (``process``) and penalised (``penalised``).

    Raises:
        RecipeError: when a name is that of no reward.

    Source: P2S.
    """
    names = list(component_names)
    for name in (outcome, process, *(() if form is None else (form,))):
        if name not in names:
            raise RecipeError(f"outcome_or_process: no reward is called '{name}'{nearest(name, names)}")
    result, steps = (components[:, names.index(name)].nan_to_num(0.0) for name in (outcome, process))
    good = torch.ones_like(result).bool() if form is None else components[:, names.index(form)] > threshold
    success = (result > threshold) & good
    solved = grouped(success.to(result), group).extreme(largest=True) > 0
    value = torch.where(solved, result, steps) if step >= begin else torch.zeros_like(result)
    by_process = good & ~solved & (step >= begin)
    stats = {"process": float(by_process.double().mean()), "penalised": float((~good).double().mean())}
    return torch.where(good, value, penalty), stats if len(result) else {}
