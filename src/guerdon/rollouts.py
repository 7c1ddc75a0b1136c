"""Rollouts: the one batch that flows through every stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from tensordict import NonTensorStack, TensorClass, TensorDict
from torch import Tensor

from guerdon.fields import FIELDS


class Rollouts(TensorClass["shadow"]):  # "values" shadows the mapping method; the field's standard name wins
    """N trajectories of at most T actions, right-padded along T; selecting, moving and saving are the container's.

    ``rewards`` holds raw components by name: (N,) per trajectory, (N,M) per turn or (N,T) per action. ``components``
    and ``dense`` are set where a shaping method has changed them; the raw ones stay. ``watch`` holds rewards that are
    scored but never optimised. ``payload`` is opaque to every stage but the policy that wrote it. Meanings and shapes
    of all fields: ``guerdon.fields.FIELDS``.
    """

    group: Tensor
    task_id: Tensor
    mask: Tensor
    old_logp: Tensor
    turn: Tensor
    done: Tensor
    truncated: Tensor
    version: Tensor
    rewards: TensorDict
    watch: TensorDict
    payload: TensorDict
    entropy: Tensor | None = None
    ref_logp: Tensor | None = None
    anchor_logp: Tensor | None = None
    features: Tensor | None = None
    prompt_logp: Tensor | None = None
    answer_logp: Tensor | None = None
    values: Tensor | None = None  # type: ignore[assignment]
    bootstrap: Tensor | None = None
    returns: Tensor | None = None
    components: Tensor | None = None
    reward: Tensor | None = None
    dense: Tensor | None = None
    greedy_reward: Tensor | None = None
    advantage: Tensor | None = None
    outcome_advantage: Tensor | None = None
    prompt_advantage: Tensor | None = None
    local_weight: Tensor | None = None
    external: Tensor | None = None
    tokens: Tensor | None = None
    state_key: Tensor | None = None
    marks: TensorDict | None = None
    parent: Tensor | None = None
    branch_at: Tensor | None = None
    prompt: list[str] | None = None
    text: list[str] | None = None
    answer: list[Any] | None = None
    metadata: list[Any] | None = None
    detail: list[Any] | None = None
    failure: list[Any] | None = None


def make_rollouts(
    group: Tensor,
    task_id: Tensor,
    mask: Tensor,
    old_logp: Tensor,
    *,
    done: Tensor,
    truncated: Tensor,
    payload: Mapping[str, Tensor],
    turn: Tensor | None = None,
    version: int = 0,
    **fields: Any,
) -> Rollouts:
    """Build a single-turn batch from what a sampler knows; rewards start empty.

    Args:
        group, task_id: (N,) int64.
        mask: (N,T) bool, true where the policy acted.
        old_logp: (N,T) float; set to 0 off the mask.
        done, truncated: (N,) bool.
        payload: the policy's own tensors, each with leading dimension N.
        turn: (N,T) int64; 0 on actions and -1 elsewhere by default.
        version: step of the weights that acted.
        fields: any further field of ``Rollouts``.
    """
    n = mask.shape[0]
    if turn is None:
        turn = torch.where(mask, 0, -1)
    for name, value in fields.items():
        if isinstance(value, list) and value:  # bare lists of numbers would become tensors and lose their type
            fields[name] = NonTensorStack(*value)
    return Rollouts(
        group=group,
        task_id=task_id,
        mask=mask,
        old_logp=old_logp.masked_fill(~mask, 0.0),
        turn=turn,
        done=done,
        truncated=truncated,
        version=torch.full((n,), version, dtype=torch.int64),
        rewards=fields.pop("rewards", TensorDict({}, [n])),
        watch=fields.pop("watch", TensorDict({}, [n])),
        payload=TensorDict(dict(payload), [n]),
        batch_size=[n],
        **fields,
    )


def pad_actions(x: Tensor, actions: int, value: float | bool = 0) -> Tensor:
    """Right-pad the second dimension of ``x`` to ``actions``."""
    missing = actions - x.shape[1]
    if missing <= 0:
        return x
    filler = torch.full((x.shape[0], missing, *x.shape[2:]), value, dtype=x.dtype, device=x.device)
    return torch.cat([x, filler], dim=1)


def join(parts: Sequence[Rollouts], payload: TensorDict) -> Rollouts:
    """Put batches below one another, right-padding their actions to the longest.

    What some of them lack is filled: with nan for rewards and other numbers of a trajectory, 0 or false for actions,
    None in lists.

    Args:
        payload: the policy's own material of all rows, which only the policy can put together.
    """
    actions = max(part.mask.shape[1] for part in parts)
    rows = [len(part) for part in parts]
    joined: dict[str, Any] = {}
    for name in sorted(_STORED - {"payload", "marks"}):
        values = [getattr(part, name) for part in parts]
        if all(value is None for value in values):
            continue
        if _is_list(name):
            items = [item for n, v in zip(rows, values, strict=True) for item in ([None] * n if v is None else v)]
            joined[name] = NonTensorStack(*items)
        else:
            each_action = name in FIELDS and FIELDS[name].shape.startswith("(N,T")
            each_turn = name in FIELDS and FIELDS[name].shape == "(N,M)"
            values = _as_many_turns(values) if each_turn else values
            joined[name] = _stacked(values, parts, actions, each_action, off=-1 if name == "turn" else 0)
    for name in ("rewards", "watch", "marks"):
        tables = [getattr(part, name) for part in parts]
        if all(table is None for table in tables):
            continue
        keys = dict.fromkeys(key for table in tables if table is not None for key in table.keys())  # noqa: SIM118
        columns = {}
        for key in keys:
            values = [None if table is None else table.get(key, None) for table in tables]
            given = [(v, part) for v, part in zip(values, parts, strict=True) if v is not None]
            each_action = all(v.shape == part.mask.shape for v, part in given)
            values = values if each_action or given[0][0].ndim < 2 else _as_many_turns(values)
            columns[key] = _stacked(values, parts, actions, each_action)
        joined[name] = TensorDict(columns, [sum(rows)])
    return Rollouts(**joined, payload=payload, batch_size=[sum(rows)])


def _as_many_turns(values: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Numbers per turn (N,M), with as many turns as the longest has."""
    most = max(value.shape[1] for value in values if value is not None)
    return [None if value is None else pad_actions(value, most) for value in values]


def _stacked(
    values: Sequence[Tensor | None], parts: Sequence[Rollouts], actions: int, each_action: bool, off: float = 0
) -> Tensor:
    """Tensors of the same field below one another; padded where they have one number per action."""
    given = next(value for value in values if value is not None)
    blocks = []
    for part, value in zip(parts, values, strict=True):
        width = (part.mask.shape[1], *given.shape[2:]) if each_action else given.shape[1:]
        missing = 0 if each_action or not given.is_floating_point() else float("nan")
        block = given.new_full((len(part), *width), missing) if value is None else value
        blocks.append(pad_actions(block, actions, off) if each_action else block)
    return torch.cat(blocks)


def _is_list(name: str) -> bool:
    return name in FIELDS and FIELDS[name].shape.startswith("N ")


def at_last_action(x: Tensor, mask: Tensor) -> Tensor:
    """Place one number per trajectory (N,) at its last action: (N,T), zero elsewhere and where nothing was done."""
    positions = torch.arange(mask.shape[1], device=mask.device)
    last = torch.where(mask, positions, -1).amax(dim=1, keepdim=True)
    return torch.where((positions == last) & mask, x.unsqueeze(1), torch.zeros((), dtype=x.dtype))


def at_turn_ends(x: Tensor, turn: Tensor) -> Tensor:
    """Place one number per turn (N,M) at the last action of that turn: (N,T), zero elsewhere.

    Args:
        turn: (N,T) turn of each action, -1 off actions.
    """
    position = torch.where(turn >= 0, torch.arange(turn.shape[1], device=turn.device), -1)
    last = turn.new_full(x.shape, -1).scatter_reduce(1, turn.clamp(min=0), position, "amax")
    placed = x.new_zeros(turn.shape)
    return placed.scatter_add(1, last.clamp(min=0), torch.where(last >= 0, x, 0.0))


def total(component: Tensor, mask: Tensor) -> Tensor:
    """Reward of each trajectory (N,): a component as it is, or summed over its turns (N,M) or actions (N,T)."""
    if component.ndim == 1:
        return component
    return (component.masked_fill(~mask, 0.0) if component.shape == mask.shape else component).sum(dim=1)


class Fields(Mapping[str, Any]):
    """Read-only view of a batch under canonical names, with the derived fields filled in on demand.

    ``length``, ``components`` (per-turn and per-action rewards summed) and ``dense`` are derived from the batch;
    ``extra`` adds or overrides fields (``logp``, ``step``, ``component_names``, ...).
    """

    def __init__(self, rollouts: Rollouts, **extra: Any) -> None:
        self._rollouts = rollouts
        self._extra = extra

    def __getitem__(self, name: str) -> Any:
        if name in self._extra:
            return self._extra[name]
        derive = _DERIVED.get(name)
        value = derive(self) if derive else getattr(self._rollouts, name, None) if name in _STORED else None
        if value is None:
            raise KeyError(name)
        return value

    def __contains__(self, name: object) -> bool:
        try:
            self[name]  # type: ignore[index]
        except KeyError:
            return False
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(n for n in (*self._extra, *_DERIVED, *_STORED) if n in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    @property
    def rollouts(self) -> Rollouts:
        return self._rollouts

    @property
    def extra(self) -> dict[str, Any]:
        """The fields that are not the batch's own."""
        return self._extra


_STORED = frozenset(Rollouts.__annotations__) - {"rewards", "watch"}


def _length(fields: Fields) -> Tensor:
    return fields.rollouts.mask.sum(dim=1)


def _component_names(fields: Fields) -> tuple[str, ...]:
    return tuple(fields.rollouts.rewards.keys())


def _components(fields: Fields) -> Tensor | None:
    shaped = fields.rollouts.components
    if shaped is not None:
        return shaped
    names: Sequence[str] = fields["component_names"]
    if not names:
        return None
    mask = fields.rollouts.mask
    return torch.stack([total(fields.rollouts.rewards[name], mask) for name in names], dim=1)


def _dense(fields: Fields) -> Tensor | None:
    """What shaping gave each action, or else the weighted per-action rewards; the rest of the outcome comes last."""
    reward, mask = fields.rollouts.reward, fields.rollouts.mask
    if reward is None:
        return None
    shaped = fields.rollouts.dense
    per_action = _raw_dense(fields) if shaped is None else shaped.masked_fill(~mask, 0.0)
    return per_action + at_last_action(reward - per_action.sum(dim=1), mask)


def _raw_dense(fields: Fields) -> Tensor:
    """Weighted sum of the rewards that have one number per action, or per turn, which stands at the turn's end."""
    mask = fields.rollouts.mask
    per_action = torch.zeros_like(fields.rollouts.old_logp)
    for weight, column in _weighted(fields):
        if column.shape == mask.shape:
            per_action = per_action + weight * column.masked_fill(~mask, 0.0).nan_to_num(0.0)
        elif column.ndim == 2:
            per_action = per_action + weight * at_turn_ends(column.nan_to_num(0.0), fields.rollouts.turn)
    return per_action


def _turn_reward(fields: Fields) -> Tensor | None:
    """Weighted sum of the rewards that have one number per turn; None where there is none."""
    mask = fields.rollouts.mask
    per_turn = [w * x.nan_to_num(0.0) for w, x in _weighted(fields) if x.ndim == 2 and x.shape != mask.shape]
    return torch.stack(per_turn).sum(dim=0) if per_turn else None


def _weighted(fields: Fields) -> Iterator[tuple[float | Tensor, Tensor]]:
    """Every component with its weight."""
    names: Sequence[str] = fields["component_names"]
    weights: Tensor | None = fields.get("component_weights")
    for k, name in enumerate(names):
        yield 1.0 if weights is None else weights[k], fields.rollouts.rewards[name]


_DERIVED = {
    "length": _length,
    "component_names": _component_names,
    "components": _components,
    "dense": _dense,
    "turn_reward": _turn_reward,
}
