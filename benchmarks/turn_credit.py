"""Which credit for which task: every rule for turns on the same three environments, with equal environment steps.

    python benchmarks/turn_credit.py [--json]

Policies are tables. Each rule gets the learning rate, of seven, with which it did best on seeds 100 to 104 by its mean
over training; shown are seeds 0 to 4. The environments are those of the claims of GiGPO, MAPO and PPR: a key and a door
in 36 cells, paid at the door alone; a dialogue of eight turns, judged after each; and five turns of search, paid for
the answer alone. ``gae`` learns a value per state beside the policy; the others have no critic.
"""

from __future__ import annotations

import json
import sys
from typing import Any, NamedTuple

import torch

from guerdon.claims.credit_and_agents.mapo import Dialogue
from guerdon.claims.credit_and_agents.ppr import Searching
from guerdon.claims.testbeds.episodes import Environment, EpisodeHistory, Episodes
from guerdon.claims.testbeds.gridworld import KeyDoor

SEEDS, TUNING, FIRST_TUNING = 5, 5, 100
RATES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)  # times the environment's
CRITIC: dict[str, Any] = {"terms": [{"name": "value", "coef": 1.0}], "critic_lr": 0.05}


class Task(NamedTuple):
    """An environment and how it is trained in.

    Attributes:
        environment: what is acted in.
        measure: the mean that is compared.
        lr: a learning rate that works.
        enough: the mean at which the task counts as learned.
        settings: of the training.
    """

    environment: Environment
    measure: str
    lr: float
    enough: float
    settings: dict[str, Any]


class OutcomeOnly(Searching):
    """Search paid for the answer alone."""

    weights = (1.0, 0.0)


TASKS = {
    "key and door": Task(KeyDoor(turns=40), "door", 60.0, 0.9, {"steps": 100, "group_size": 8, "groups": 4}),
    "dialogue": Task(Dialogue(), "mood", 20.0, 1.2, {"steps": 60, "group_size": 8, "groups": 8}),
    "search": Task(OutcomeOnly(), "answer", 4.0, 0.8, {"steps": 100, "group_size": 8, "groups": 4}),
}
RULES: dict[str, dict[str, Any]] = {
    "grpo": {"credit": "grpo"},
    "gigpo": {"credit": "gigpo"},
    "mapo": {"credit": "mapo", "per_seed": True},
    "tempo": {"credit": "tempo"},
    "gae": {"credit": {"name": "gae", "gamma": 0.97}, "per_seed": True, **CRITIC},
}


def train(task: Task, rule: dict[str, Any], rate: float, first: int, seeds: int) -> EpisodeHistory:
    bed = Episodes(task.environment)
    return bed.train(seeds=seeds, first_seed=first, lr=rate * task.lr, measure=2, episodes=256, **task.settings, **rule)


def best_rate(task: Task, rule: dict[str, Any]) -> float:
    """The rate with the largest mean over training, on seeds of their own."""
    scores = {rate: float(train(task, rule, rate, FIRST_TUNING, TUNING).means[task.measure].mean()) for rate in RATES}
    return max(scores, key=lambda rate: scores[rate])


def main() -> None:
    torch.set_num_threads(1)
    table: dict[str, dict[str, Any]] = {}
    for name, task in TASKS.items():
        for rule, options in RULES.items():
            rate = best_rate(task, options)
            history = train(task, options, rate, 0, SEEDS)
            seen = history.means[task.measure]
            table.setdefault(name, {})[rule] = {
                "rate": rate,
                "end": seen[-1].tolist(),
                "mean": seen.mean(dim=0).tolist(),
                "updates": history.first(task.measure, task.enough).tolist(),
            }
            print(f"{name}, {rule}: done", file=sys.stderr, flush=True)
    if "--json" in sys.argv:
        print(json.dumps(table))
        return
    for name, rows in table.items():
        task = TASKS[name]
        print(f"\n{name}: {task.measure}, {task.settings}, enough is {task.enough}")
        print(f"{'':8}{'rate':>6}{'in the end':>22}{'over training':>15}{'updates until enough':>24}")
        for rule, row in rows.items():
            end, over, updates = (torch.tensor(row[key]) for key in ("end", "mean", "updates"))
            spread = f"{end.mean():.3f} ({end.min():.2f} to {end.max():.2f})"
            never = int((updates > task.settings["steps"]).sum())
            reached = f"{updates.mean():.1f}" + (f", {never} never" if never else "")
            print(f"{rule:8}{row['rate']:>6}{spread:>22}{over.mean():>15.3f}{reached:>24}")


if __name__ == "__main__":
    main()
