"""guerdon inside TRL: rewards as reward functions, and a ``GRPOTrainer`` with guerdon's shaping and credit.

from guerdon.integrations.trl import GRPOTrainer, reward

GRPOTrainer(
    model="Qwen/Qwen3-0.6B",
    reward_funcs=[reward("math_verify", timeout=5), reward({"name": "letters", "weight": 0.2})],
    credit=["gdpo", "difficulty_weights"],
    train_dataset=dataset,
).train()
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from guerdon.errors import RecipeError
from guerdon.integrations.columns import COMMON, Spec, as_rollouts, bind_signal, text_of
from guerdon.recipe import RewardSpec
from guerdon.rewards.base import score
from guerdon.rollouts import Rollouts
from guerdon.training.build import make_reward
from guerdon.training.signal import Signal

try:
    import trl
    from accelerate.utils import gather_object
    from trl.trainer.grpo_trainer import GRPOTrainer as _Trainer
except ImportError as error:  # pragma: no cover - the message is tested by hand
    raise ImportError("guerdon.integrations.trl needs TRL; install guerdon[trl]") from error

_MEMORY = "guerdon.pt"
_OVERRIDDEN = ("_calculate_rewards", "_generate_and_score_completions", "_save_checkpoint")
if any(not hasattr(_Trainer, name) for name in _OVERRIDDEN):  # pragma: no cover
    raise ImportError(f"guerdon.integrations.trl is written for TRL 1.16 and later 1.x, found {trl.__version__}")


def reward(spec: Spec | Callable[..., Any], **options: Any) -> Any:
    """A reward of guerdon as a reward function of TRL.

    A call that fails, hangs or gives no number is None in TRL, which leaves the completion out of its group; how many
    did is the metric ``faults/NAME``. Columns of the dataset are the metadata, and ``answer`` the reference answer.

    Args:
        spec: name of a reward, the entry of a recipe's ``rewards``, or a function.
        options: of the reward, and where it works (``workers``, ``timeout``, ``memory_mb``, ``retries``, ``label``).

    Returns:
        A function for ``reward_funcs``, under the reward's name. Its ``close()`` ends the workers, which end with the
        trainer otherwise.

    Raises:
        RecipeError: for unknown names and options, and for a weight, which belongs to ``reward_weights`` of TRL.
    """
    entry = {**(dict(spec) if isinstance(spec, Mapping) else {"name": spec}), **options}
    for key, why in {"weight": "GRPOConfig(reward_weights=...)", "watch": "a callback of TRL's"}.items():
        if key in entry:
            raise RecipeError(f"reward '{entry['name']}' in TRL has no '{key}'; use {why}")
    made = make_reward(RewardSpec.model_validate(entry))
    if made.method is None:
        raise RecipeError("reward 'task' belongs to a task of guerdon's; name another reward")

    def function(
        prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Sequence[Any], **columns: Any
    ) -> list[float | None]:
        state, log = columns.get("trainer_state"), columns.get("log_metric")
        length = torch.tensor([len(ids) for ids in completion_ids])
        mask = torch.arange(max(int(length.max()), 1)) < length.unsqueeze(1)
        runs = [len(list(members)) for _, members in groupby(prompts, key=text_of)]
        rollouts = as_rollouts(
            mask,
            torch.arange(len(runs)).repeat_interleave(torch.tensor(runs)),
            prompts=prompts,
            completions=completions,
            columns={name: values for name, values in columns.items() if isinstance(values, list)},
            truncated=torch.zeros(len(mask), dtype=torch.bool),
        )
        scored, faults = score(rollouts, [made], getattr(state, "global_step", 0))
        if log is not None:
            log(f"faults/{made.name}", float(len(faults)))
        values = scored.rewards[made.name]
        total = values if values.ndim == 1 else values.sum(dim=1)
        return [None if math.isnan(value) else value for value in total.tolist()]

    function.__name__ = made.name
    function.close = made.close  # type: ignore[attr-defined]
    return function


class GRPOTrainer(_Trainer):
    """TRL's ``GRPOTrainer`` in which shaping and credit are guerdon's.

    Sampling, rewards, loss, distribution and logging stay TRL's. Credit may differ by token. What methods remember is
    in TRL's checkpoints, as ``guerdon.pt``.

    Args:
        shaping: methods of stage ``shaping``, by name or as a mapping with options.
        credit: a method of stage ``credit``, or several in order.
        args, kwargs: of ``trl.GRPOTrainer``.

    Raises:
        MissingField: when a method asks for a field that TRL cannot give, such as a critic's ``values``.
    """

    def __init__(self, *args: Any, shaping: Sequence[Spec] = (), credit: Spec | Sequence[Spec] = "grpo", **kwargs: Any):
        supplied = COMMON | {"tokens"}
        dataset = kwargs.get("train_dataset", args[3] if len(args) > 3 else None)
        if "answer" in (getattr(dataset, "column_names", None) or ()):
            supplied |= {"answer"}
        shapers, credits = bind_signal(shaping, credit, frozenset(supplied), "TRL's GRPOTrainer")
        super().__init__(*args, **kwargs)
        names = tuple(self.reward_func_names)
        self.signal = Signal(shapers, credits, names, self.reward_weights.float(), self.args.seed)
        self._scores: Tensor | None = None

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Tensor:
        self._told = (inputs, prompts, completions, [ids[-1] for ids in completion_ids_list])
        scores: Any = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        self._scores = scores
        return scores

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        model: Any = self.model
        mode = "train" if model.training else "eval"
        rollouts = self._rollouts(output, mode)
        credit, stats = self._credit(rollouts)
        own = slice(self.accelerator.process_index * len(inputs), (self.accelerator.process_index + 1) * len(inputs))
        output["advantages"] = credit[own, : output["completion_mask"].shape[1]]
        for name, value in stats.items():
            self._metrics[mode][name].append(value)
        logged, rows = self._logs["advantages"], len(credit)
        for _ in range(min(rows, len(logged))):
            logged.pop()
        logged.extend((credit.sum(dim=1) / rollouts.mask.sum(dim=1).clamp(min=1)).tolist())
        return output

    def _rollouts(self, output: Mapping[str, Any], mode: str) -> Rollouts:
        """The batch of all processes, in the order of the rewards that TRL has gathered."""
        inputs, prompts, completions, last = self._told
        mask = output["completion_mask"] * output.get("tool_mask", 1)
        ends = torch.tensor([*self.eos_token_ids, self._tokenizer.pad_token_id], device=mask.device)
        truncated = ~torch.isin(torch.tensor(last, device=mask.device), ends)
        of: Any = self.num_generations if mode == "train" else self.num_generations_eval
        keys = sorted(set(inputs[0]) - {"prompt", "completion", "completion_ids"})
        columns = {key: gather_object([example[key] for example in inputs]) for key in keys}
        whole = self._gathered(mask).bool()
        assert self._scores is not None
        rollouts = as_rollouts(
            whole,
            torch.arange(len(whole), device=whole.device) // of,
            prompts=gather_object(list(prompts)),
            completions=gather_object(list(completions)),
            columns=columns,
            truncated=self._gathered(truncated.unsqueeze(1)).squeeze(1).bool(),
            tokens=self._gathered(output["completion_ids"]),
        )
        for place, name in enumerate(self.signal.names):
            rollouts.rewards[name] = self._scores[:, place].to(whole.device)
        return rollouts

    def _gathered(self, x: Tensor) -> Tensor:
        whole: Any = self.accelerator.gather(self.accelerator.pad_across_processes(x, dim=1, pad_index=0))
        return whole

    @torch.no_grad()
    def _credit(self, rollouts: Rollouts) -> tuple[Tensor, dict[str, float]]:
        """(N,T) credit of each token; 0 for completions that no reward function could score."""
        assert self._scores is not None
        scorable = ~self._scores.isnan().all(dim=1)
        out = torch.zeros(rollouts.mask.shape, device=rollouts.mask.device)
        if not bool(scorable.any()):
            return out, {}
        step = self.state.global_step
        kept, shaped = self.signal.shape(rollouts[scorable], step)
        kept, stats = self.signal.assign_credit(kept, step)
        out[scorable] = kept.advantage.to(out)  # type: ignore[union-attr]  # a credit gives one
        return out, shaped | stats

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
            torch.save([bound.state_dict() for bound in self._methods], folder / _MEMORY)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and (path := Path(checkpoint) / _MEMORY).is_file():
            for bound, state in zip(self._methods, torch.load(path, weights_only=True), strict=True):
                bound.load_state_dict(state)

    @property
    def _methods(self) -> list[Any]:
        return [*self.signal.shaping, *self.signal.credit]
