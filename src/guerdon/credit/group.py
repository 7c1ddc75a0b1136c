"""Credit from comparing the outcomes of one group, or of the whole batch; every action gets its trajectory's."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from guerdon.credit.grouping import Singleton, center, group_mean, grouped, leave_one_out_mean, per_action, whiten
from guerdon.credit.weights import question_weight
from guerdon.registry import register


@register("credit", paper="Shao et al. 2024, arXiv 2402.03300", needs_group=True)
def grpo(
    reward: Tensor, group: Tensor, mask: Tensor, *, eps: float = 1e-4, ddof: int = 1, singleton: Singleton = "zero"
) -> Tensor:
    """Group-relative advantage, scaled by the group's spread.

    A_i = (r_i - mean_g r) / (std_g r + eps)

    Args:
        reward: (N,) outcome of each trajectory.
        group: (N,) key of the trajectories that share a start.
        mask: (N,T) true on actions.
        eps: added to the standard deviation.
        ddof: 1 for the sample standard deviation, 0 for the population one.
        singleton: what a group of one gets. It has nothing to compare with, so the default is no credit (``zero``);
            trainers disagree, and ``raw`` reproduces those that keep its reward (mean 0, std 1).

    Returns:
        (N,T) A_i on the actions of trajectory i, 0 elsewhere; exactly 0 where all rewards of a group are equal.

    Source: Shao et al. 2024, arXiv 2402.03300.
    """
    return per_action(whiten(reward, group, eps=eps, ddof=ddof, singleton=singleton), mask)


@register("credit", paper="Liu et al. 2025, arXiv 2503.20783", needs_group=True)
def dr_grpo(reward: Tensor, group: Tensor, mask: Tensor, *, singleton: Singleton = "zero") -> Tensor:
    """Group-relative advantage without scaling, so that no prompt weighs more for having a small spread.

    A_i = r_i - mean_g r

    The published method is this credit with objective ``ppo_clip`` and ``aggregate: sum_over_max_length``.

    Args:
        reward: (N,) outcome of each trajectory.
        group: (N,) key of the trajectories that share a start.
        mask: (N,T) true on actions.
        singleton: what a group of one gets: no credit (``zero``) or its reward (``raw``).

    Returns:
        (N,T) A_i on the actions of trajectory i, 0 elsewhere.

    Source: Liu et al. 2025, arXiv 2503.20783.
    """
    return per_action(center(reward, group, singleton=singleton), mask)


@register("credit", paper="Ahmadian et al. 2024, arXiv 2402.14740", needs_group=True)
def rloo(reward: Tensor, group: Tensor, mask: Tensor) -> Tensor:
    """Reward minus the mean of the other members of the group: an unbiased baseline.

    A_i = r_i - mean_{j in g, j != i} r_j

    Args:
        reward: (N,) outcome of each trajectory.
        group: (N,) key of the trajectories that share a start.
        mask: (N,T) true on actions.

    Returns:
        (N,T) A_i on the actions of trajectory i, 0 elsewhere and in a group of one.

    Source: Ahmadian et al. 2024, arXiv 2402.14740; Kool et al. 2019.
    """
    return per_action(reward - leave_one_out_mean(reward, group), mask)


@register("credit", "reinforce++", paper="Hu 2025, arXiv 2501.03262", aliases=("reinforce_pp",))
def reinforce_pp(
    reward: Tensor,
    mask: Tensor,
    *,
    unit: Literal["token", "trajectory"] = "token",
    eps: float = 1e-8,
    ddof: int = 0,
) -> Tensor:
    """Outcome whitened over the whole batch, with no comparison inside groups.

    A_i = (r_i - mean_B r) / (std_B r + eps)

    Args:
        reward: (N,) outcome of each trajectory.
        mask: (N,T) true on actions.
        unit: what the batch statistics count. ``token``, as in the authors' release: each trajectory counts once per
            action, so long ones weigh more. ``trajectory``: each counts once.
        eps: added to the standard deviation.
        ddof: 0 for the population standard deviation of the authors' release; some ports use 1.

    Returns:
        (N,T) A_i on the actions of trajectory i, 0 elsewhere. The per-action KL penalty that the paper subtracts
        from the reward is the separate term ``kl``.

    Source: Hu 2025, arXiv 2501.03262.
    """
    return _batch_whiten(reward, mask, unit, eps, ddof)


@register(
    "credit",
    "reinforce++_baseline",
    paper="Hu 2025, arXiv 2501.03262",
    aliases=("reinforce_pp_baseline",),
    needs_group=True,
)
def reinforce_pp_baseline(
    reward: Tensor,
    group: Tensor,
    mask: Tensor,
    *,
    unit: Literal["token", "trajectory"] = "token",
    eps: float = 1e-8,
    ddof: int = 0,
    singleton: Singleton = "zero",
) -> Tensor:
    """Outcome minus its group's mean, then whitened over the whole batch.

    c_i = r_i - mean_g r;  A_i = (c_i - mean_B c) / (std_B c + eps)

    Args:
        reward: (N,) outcome of each trajectory.
        group: (N,) key of the trajectories that share a start.
        mask: (N,T) true on actions.
        unit: what the batch statistics count, as in ``reinforce_pp``.
        eps: added to the standard deviation.
        ddof: 0 for the population standard deviation, 1 for the sample one.
        singleton: what a group of one enters the batch with: 0 (``zero``) or its reward (``raw``).

    Returns:
        (N,T) A_i on the actions of trajectory i, 0 elsewhere. A group of equal rewards gets exactly 0; in the
        release it gets the shift -mean_B c / std_B c, which carries no information about it.

    Source: Hu 2025, arXiv 2501.03262.
    """
    centred = center(reward, group, singleton=singleton)
    silent = _silent(reward, group, singleton).unsqueeze(1)
    return _batch_whiten(centred, mask, unit, eps, ddof).masked_fill(silent, 0.0)


@register("credit", paper="Chu et al. 2025, arXiv 2504.02546", needs_group=True)
def gpg(
    reward: Tensor, group: Tensor, mask: Tensor, *, f_norm: Literal["one", "std"] = "one", eps: float = 1e-4
) -> Tensor:
    """Group-centred outcome, rescaled for the trajectories that carry no signal.

    A_i = alpha (r_i - mean_g r) / F,  alpha = B / (B - M)

    B counts the trajectories of the batch and M those in groups of equal rewards, so the gradient keeps its size
    when many groups are silent. (The release counts trajectories of reward 0 instead; the paper's M stands here.)

    Args:
        reward: (N,) outcome of each trajectory.
        group: (N,) key of the trajectories that share a start.
        mask: (N,T) true on actions.
        f_norm: F = 1 (``one``) or std_g r + eps (``std``).
        eps: added to the standard deviation.

    Returns:
        (N,T) A_i on the actions of trajectory i, 0 elsewhere, in groups of one, and when every group is silent.

    Source: Chu et al. 2025, arXiv 2504.02546.
    """
    useful = (~grouped(reward, group).tied()).sum()
    alpha = reward.shape[0] / useful.clamp(min=1)
    relative = center(reward, group) if f_norm == "one" else whiten(reward, group, eps=eps)
    return per_action(alpha * relative, mask)


@register("credit", paper="Liu et al. 2026, arXiv 2601.05242", needs_group=True)
def gdpo(
    components: Tensor,
    group: Tensor,
    mask: Tensor,
    component_weights: Tensor | None = None,
    *,
    eps: float = 1e-4,
    batch_norm: Literal["sequence", "token", "none"] = "sequence",
    singleton: Singleton = "zero",
) -> Tensor:
    """Every reward compared with its group on its own scale, then weighted, added up and whitened over the batch.

    a_i = sum_k w_k (r_{i,k} - mean_g r_k) / (std_g r_k + eps);  A_i = (a_i - mean_B a) / (std_B a + eps)

    Summing first would give different combinations of rewards the same advantage. The weights multiply advantages:
    on the rewards themselves the z-score would cancel them. The shaped sum is not read.

    Args:
        components: (N,K) raw rewards, one column each; NaN counts as 0.
        group: (N,) key of the trajectories that share a start.
        mask: (N,T) true on actions.
        component_weights: (K,) weights w; 1 by default. A recipe gives those of its rewards.
        eps: added to each standard deviation.
        batch_norm: what the batch statistics count: each trajectory once (``sequence``), each once per action
            (``token``), or no batch step (``none``). A single component (K = 1) has none either: it gives ``grpo``.
        singleton: what a group of one enters the batch with: 0 (``zero``) or its weighted rewards (``raw``).

    Returns:
        (N,T) A_i on the actions of trajectory i, 0 elsewhere; exactly 0 in a group whose a_i are all equal, which
        the batch step alone would shift by -mean_B a / std_B a.

    Raises:
        ValueError: when there is not one weight per component.

    Source: Liu et al. 2026, arXiv 2601.05242.
    """
    weights = (
        components.new_ones(components.shape[1]) if component_weights is None else component_weights.to(components)
    )
    if weights.shape != components.shape[1:]:
        raise ValueError(
            f"component_weights has shape {tuple(weights.shape)}, components {tuple(components.shape)}; "
            "give one weight per column"
        )
    columns = components.masked_fill(components.isnan(), 0.0).unbind(dim=1)
    apart = torch.stack([whiten(column, group, eps=eps, singleton=singleton) for column in columns], dim=1)
    combined = (weights * apart).sum(dim=1)
    if batch_norm == "none" or len(columns) == 1:
        return per_action(combined, mask)
    unit = "token" if batch_norm == "token" else "trajectory"
    silent = _silent(combined, group, singleton).unsqueeze(1)
    return _batch_whiten(combined, mask, unit, eps, ddof=1).masked_fill(silent, 0.0)


@register("credit", paper="Zhu et al. 2026, arXiv 2601.06993", needs_group=True)
def mrn(
    components: Tensor,
    group: Tensor,
    mask: Tensor,
    component_weights: Tensor | None = None,
    *,
    eps: float = 1e-4,
    singleton: Singleton = "zero",
) -> Tensor:
    """Every reward compared with its group on its own scale, then weighted and added up: ``gdpo``, no batch step.

    A_i = sum_k w_k (r_{i,k} - mean_g r_k) / (std_g r_k + eps)

    K rewards make |A| grow like sqrt(K) to K, so the learning rate must follow.

    Args:
        components: (N,K) raw rewards, one column each; NaN counts as 0.
        group: (N,) key of the trajectories that share a start.
        mask: (N,T) true on actions.
        component_weights: (K,) weights w; 1 by default. A recipe gives those of its rewards.
        eps: added to each standard deviation.
        singleton: what a group of one gets: no credit (``zero``) or its weighted rewards (``raw``).

    Returns:
        (N,T) A_i on the actions of trajectory i, 0 elsewhere.

    Raises:
        ValueError: when there is not one weight per component.

    Source: Zhu et al. 2026, arXiv 2601.06993.
    """
    return gdpo(components, group, mask, component_weights, eps=eps, batch_norm="none", singleton=singleton)


@register("credit", paper="Nan et al. 2025, arXiv 2509.18851", needs_group=True)
def ngrpo(
    reward: Tensor,
    group: Tensor,
    mask: Tensor,
    *,
    virtual: Annotated[int, Field(ge=0)] = 1,
    max_reward: float = 1.0,
    eps: float = 1e-6,
    singleton: Singleton = "zero",
) -> Tensor:
    """Group-relative advantage with imagined best members, so that a group that fails throughout is pushed away.

    A_i = (r_i - m) / (s + eps),  m and s: mean and sample standard deviation of the group and ``virtual`` max_reward

    The published method is this credit with objective ``ppo_clip``, lower clip 0.16 and upper clip 0.24.

    Args:
        reward: (N,) outcome of each trajectory.
        group: (N,) key of the trajectories that share a start.
        mask: (N,T) true on actions.
        virtual: imagined members of each group; they enter its statistics only.
        max_reward: the largest outcome there can be. Were it smaller, good groups would be pushed away too little.
        eps: added to the standard deviation.
        singleton: what a group of one gets, which imagines no member: no credit (``zero``) or its reward (``raw``).

    Returns:
        (N,T) A_i on the actions of trajectory i, 0 elsewhere; exactly 0 where all of a group reach max_reward, and
        of negative mean in every other group.

    Source: Nan et al. 2025, arXiv 2509.18851.
    """
    keys, size = group.unique(return_counts=True)
    imagined = keys[size > 1].repeat(virtual)
    outcomes = torch.cat([reward, reward.new_full(imagined.shape, max_reward)])
    relative = whiten(outcomes, torch.cat([group, imagined]), eps=eps, singleton=singleton)
    return per_action(relative[: reward.shape[0]], mask)


@register("credit", paper="Dai et al. 2026, arXiv 2601.20614", needs_group=True)
def dgpo(
    reward: Tensor,
    group: Tensor,
    mask: Tensor,
    components: Tensor | None = None,
    *,
    accuracy: int = 0,
    temperature: Annotated[float, Field(gt=0)] = 2.0,
    token_mean: Literal["useful", "all"] = "useful",
    eps: float = 1e-4,
) -> Tensor:
    """Group-relative advantage of equal total size in every group, times a weight that favours hard problems.

    A_i = lambda_g G (r_i - mean_g r) / (sum_g |r - mean_g r| + eps),  lambda: ``difficulty_softmax``

    Before lambda the |A_i| of a useful group add up to G, where ``grpo`` gives very hard and very easy ones less.
    The published method is this credit with objective ``ppo_clip`` and ``aggregate: token_mean``.

    Args:
        reward: (N,) outcome of each trajectory.
        group: (N,) key of the trajectories that share a start.
        mask: (N,T) true on actions.
        components: (N,K) raw rewards; the outcome stands for the accuracy where they are not given.
        accuracy: column of components that tells how hard a problem is; NaN counts as 0. A group that is 0 throughout
            on it, yet useful through another reward, gets the weight of a solved one.
        temperature: of the softmax over the useful groups.
        token_mean: which actions the objective's token mean is to count: those of useful groups, by the factor
            (all actions / useful actions) on A, or ``all`` (no factor).
        eps: added to the sum of absolute deviations.

    Returns:
        (N,T) A_i on the actions of trajectory i, 0 elsewhere and where all rewards of a group are equal.

    Source: Dai et al. 2026, arXiv 2601.20614.
    """
    stats = grouped(reward, group)
    size, distance = stats.count(), stats.deviation()
    total = size * group_mean(distance.abs(), group) + eps
    even = size * distance / torch.where(total > 0, total, 1.0)
    useful = ~stats.tied()
    score = reward if components is None else components[:, accuracy]
    weight = question_weight(score, group, useful, temperature=temperature)
    if token_mean == "useful":
        actions = mask.sum(dim=1)
        weight = weight * actions.sum() / actions[useful].sum().clamp(min=1)
    return per_action(weight * even, mask)


def _silent(x: Tensor, group: Tensor, singleton: Singleton) -> Tensor:
    """(N,) trajectories whose group says nothing about them."""
    stats = grouped(x, group)
    return stats.tied() & ((stats.count() > 1) | (singleton == "zero"))


def _batch_whiten(x: Tensor, mask: Tensor, unit: Literal["token", "trajectory"], eps: float, ddof: int) -> Tensor:
    if unit == "token":
        return whiten(per_action(x, mask), None, mask, eps=eps, ddof=ddof)
    acted = torch.any(mask, dim=1)
    return per_action(whiten(x, None, acted, eps=eps, ddof=ddof), mask)
