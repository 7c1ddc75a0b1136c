"""One recipe of each kind that trains in a second or two."""

from typing import Any

# What a language recipe of two steps needs beside its sampling; words have three letters.
WORDS: dict[str, Any] = {
    "task": {"name": "reasoning_gym", "dataset": "spell_backward", "config": {"min_word_len": 3, "max_word_len": 3}},
    "policy": {"name": "tiny_lm", "width": 16, "layers": 1, "heads": 2},
    "evaluation": {"problems": 4},
}

LANGUAGE: dict[str, Any] = {
    "name": "language",
    "task": {"name": "reasoning_gym", "dataset": "spell_backward", "config": {"min_word_len": 3, "max_word_len": 4}},
    "policy": {"name": "tiny_lm", "width": 16, "layers": 1, "heads": 2},
    "warm_start": {"steps": 3, "batch": 8},
    "sampling": {"prompts": 4, "group_size": 4, "max_new_tokens": 5},
    "rewards": ["task", {"name": "letters", "weight": 0.5}],
    "objective": {"name": "clip_cov"},
    "terms": [{"name": "kl", "beta": 0.1}, {"name": "entropy", "beta": 0.01}],
    "optimizer": {"lr": 1e-3, "warmup": 2, "schedule": "linear"},
    "training": {"steps": 8, "epochs": 2, "minibatches": 2},
    "evaluation": {"problems": 8, "every": 3},
    "checkpoint": {"every": 2, "keep": 2},
    "logging": {"rollouts_every": 3},
}

FLOW: dict[str, Any] = {
    "name": "flow",
    "task": "digits",
    "policy": {"name": "flow", "hidden": 16, "layers": 1},
    "warm_start": {"steps": 3, "batch": 16},
    "sampling": {"prompts": 3, "group_size": 4},
    "rewards": ["brightness", {"name": "darkness", "watch": True}],
    "objective": {"name": "ppo_clip", "clip_low": 1e-3, "clip_high": 1e-3},
    "terms": [{"name": "kl", "beta": 0.1}],
    "training": {"steps": 8, "minibatches": 2},
    "evaluation": {"problems": 10},
    "checkpoint": {"every": 2, "keep": 2},
    "logging": {"rollouts_every": 3},
}

CONTROL: dict[str, Any] = {
    "name": "control",
    "task": {"name": "gymnasium", "env": "CartPole-v1"},
    "policy": {"name": "control", "hidden": [16]},
    "sampling": {"prompts": 3, "group_size": 1, "horizon": 25},
    "credit": "gae",
    "terms": ["value", {"name": "entropy", "beta": 0.01}],
    "optimizer": {"lr": 1e-2},
    "training": {"steps": 8, "epochs": 2, "minibatches": 4, "minibatch_by": "action"},
    "evaluation": {"problems": 2},
    "checkpoint": {"every": 2, "keep": 2},
    "logging": {"rollouts_every": 3},
}

REWARDS = '''
import torch
from guerdon import batched


def letters(text):
    """Share of letters."""
    return sum(c.isalpha() for c in text) / (1 + len(text))


@batched
def brightness(payload):
    """Mean pixel."""
    return payload["sample"].flatten(1).mean(1)


@batched
def darkness(payload):
    """Minus the mean pixel."""
    return -payload["sample"].flatten(1).mean(1)
'''

KINDS = {"language": LANGUAGE, "flow": FLOW, "control": CONTROL}
