"""Who judges: a model behind a server, a local model, or a script with known faults."""

from guerdon.rewards.judges.base import Backend, Judge, JudgeOption, resolve_judge
from guerdon.rewards.judges.local import LocalJudge
from guerdon.rewards.judges.openai import OpenAIJudge
from guerdon.rewards.judges.questions import (
    Checklist,
    Item,
    JudgeError,
    Preference,
    Question,
    Ranking,
    Rating,
    Steps,
    UnreadableVerdict,
    Verdict,
)
from guerdon.rewards.judges.scripted import ScriptedJudge

BACKENDS: dict[str, type[Backend]] = {"openai": OpenAIJudge, "local": LocalJudge, "scripted": ScriptedJudge}

__all__ = [
    "BACKENDS",
    "Backend",
    "Checklist",
    "Item",
    "Judge",
    "JudgeError",
    "JudgeOption",
    "LocalJudge",
    "OpenAIJudge",
    "Preference",
    "Question",
    "Ranking",
    "Rating",
    "ScriptedJudge",
    "Steps",
    "UnreadableVerdict",
    "Verdict",
    "resolve_judge",
]
