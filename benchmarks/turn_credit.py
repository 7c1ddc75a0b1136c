"""Which credit for which task: every rule for turns on the same three environments, with equal environment steps.

    python benchmarks/turn_credit.py [--json] [RULE ...]

Policies are tables. Each rule gets the learning rate, of seven, with which it did best on seeds 100 to 104 by its mean
over training; shown are seeds 0 to 4. The environments are those of the claims of GiGPO, MAPO and PPR: a key and a door
in 36 cells, paid at the door alone; a dialogue of eight turns, judged after each; and five turns of search, paid for
the answer alone.

Some rules read more than the outcome, and are shown where there is more: ``igpo`` the chance of the right answer given
what was found; ``renorm``, ``gated`` and ``min_form`` a judge of single searches, who likes padded queries best;
``hae`` two subgoals, key and door, which a planner keeps or switches. ``gae``, ``spa`` and these learn a value per
state beside the policy where they need one.
"""

from __future__ import annotations

import json
import sys
from typing import Any, NamedTuple

import torch
from torch import Tensor

from guerdon.claims.credit_and_agents.hiper import with_marks
from guerdon.claims.credit_and_agents.mapo import Dialogue
from guerdon.claims.credit_and_agents.ppr import RIGHT, Searching
from guerdon.claims.testbeds.episodes import Environment, EpisodeHistory, Episodes
from guerdon.claims.testbeds.gridworld import KeyDoor, Planned
from guerdon.credit.belief import igpo
from guerdon.credit.hierarchical import hae

SEEDS, TUNING, FIRST_TUNING = 5, 5, 100
RATES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)  # times the environment's
DOOR, DIALOGUE, SEARCH = "key and door", "dialogue", "search"


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


class Rule(NamedTuple):
    """A credit, or rewards that stand for one.

    Attributes:
        settings: of the training.
        tasks: where it is shown.
        environment: what is acted in instead, for what only that supplies.
    """

    settings: dict[str, Any]
    tasks: tuple[str, ...] = (DOOR, DIALOGUE, SEARCH)
    environment: Environment | None = None


class OutcomeOnly(Searching):
    """Search paid for the answer alone."""

    weights = (1.0, 0.0)


def informed(reward: Tensor, group: Tensor, turn: Tensor, mask: Tensor, payload: Any) -> Any:
    """IGPO with the chance of the right answer by what was found before each turn."""
    return igpo(reward, RIGHT[payload["state"] % 3].log(), group, turn, mask)


TASKS = {
    DOOR: Task(KeyDoor(turns=40), "door", 60.0, 0.9, {"steps": 100, "group_size": 8, "groups": 4}),
    DIALOGUE: Task(Dialogue(), "mood", 20.0, 1.2, {"steps": 60, "group_size": 8, "groups": 8}),
    SEARCH: Task(OutcomeOnly(), "answer", 4.0, 0.8, {"steps": 100, "group_size": 8, "groups": 4}),
}
CRITIC: dict[str, Any] = {"terms": [{"name": "value", "coef": 1.0}], "critic_lr": 0.05, "per_seed": True}
GAE: dict[str, Any] = {"credit": {"name": "gae", "gamma": 0.97}, **CRITIC}
SPA = {"name": "progress_attribution", "beta": 0.0, "explore": 320}
GATED = {"name": "gated_accumulation", "levels": [["answer"], ["judge"]], "gates": {"answer": 0.5}}
RULES: dict[str, Rule] = {
    "grpo": Rule({"credit": "grpo"}),
    "tempo": Rule({"credit": "tempo"}),
    "gigpo": Rule({"credit": "gigpo"}),
    "mapo": Rule({"credit": "mapo", "per_seed": True}),
    "gae": Rule(GAE),
    "spa": Rule({"shaping": ["weighted_sum", SPA], **GAE}),
    "hae": Rule({"credit": with_marks(hae), **CRITIC}, (DOOR,), Planned(KeyDoor(turns=40))),
    "igpo": Rule({"credit": informed}, (SEARCH,)),
    "renorm": Rule({"shaping": [{"name": "renorm", "outcome": "answer"}], **GAE}, (SEARCH,), Searching()),
    "gated": Rule({"shaping": [GATED], "credit": "grpo"}, (SEARCH,), Searching()),
    "min_form": Rule({"credit": {"name": "min_form", "outcome": "answer"}}, (SEARCH,), Searching()),
}


def train(task: Task, rule: Rule, rate: float, first: int, seeds: int) -> EpisodeHistory:
    bed = Episodes(rule.environment or task.environment)
    settings = {"measure": 2, "episodes": 256, **task.settings, **rule.settings}
    return bed.train(seeds=seeds, first_seed=first, lr=rate * task.lr, **settings)


def best_rate(task: Task, rule: Rule) -> float:
    """The rate with the largest mean over training, on seeds of their own."""
    scores = {rate: float(train(task, rule, rate, FIRST_TUNING, TUNING).means[task.measure].mean()) for rate in RATES}
    return max(scores, key=lambda rate: scores[rate])


def measured(name: str, wanted: list[str]) -> dict[str, dict[str, Any]]:
    """A row for each rule that a task is shown with."""
    task, rows = TASKS[name], {}
    for label, rule in RULES.items():
        if name not in rule.tasks or (wanted and label not in wanted):
            continue
        rate = best_rate(task, rule)
        history = train(task, rule, rate, 0, SEEDS)
        seen = history.means[task.measure]
        rows[label] = {
            "rate": rate,
            "end": seen[-1].tolist(),
            "mean": seen.mean(dim=0).tolist(),
            "updates": history.first(task.measure, task.enough).tolist(),
        }
        print(f"{name}, {label}: done", file=sys.stderr, flush=True)
    return rows


def main() -> None:
    torch.set_num_threads(1)
    wanted = [word for word in sys.argv[1:] if not word.startswith("-")]
    table = {name: measured(name, wanted) for name in TASKS}
    if "--json" in sys.argv:
        print(json.dumps(table))
        return
    for name, rows in table.items():
        task = TASKS[name]
        print(f"\n{name}: {task.measure}, {task.settings}, enough is {task.enough}")
        print(
            f"{'':9}{'rate':>6}{'in the end':>22}{'over training':>15}{'updates until enough':>24}{'before grpo':>13}"
        )
        for label, row in rows.items():
            end, over, updates = (torch.tensor(row[key]) for key in ("end", "mean", "updates"))
            spread = f"{end.mean():.3f} ({end.min():.2f} to {end.max():.2f})"
            never = int((updates > task.settings["steps"]).sum())
            reached = f"{updates.mean():.1f}" + (f", {never} never" if never else "")
            sooner = int((updates < torch.tensor(rows["grpo"]["updates"])).sum()) if "grpo" in rows else "-"
            print(f"{label:9}{row['rate']:>6}{spread:>22}{over.mean():>15.3f}{reached:>24}{sooner:>8} of {SEEDS}")


if __name__ == "__main__":
    main()
