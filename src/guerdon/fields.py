"""The canonical names of the data that flow between stages, and how a recipe comes to have each of them.

Add to this table; never rename. N trajectories, T actions, M turns, K components, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple


class Field(NamedTuple):
    """One canonical datum: its shape and meaning, and what to change in a recipe that lacks it."""

    shape: str
    meaning: str
    remedy: str


_ALWAYS = "every sampler supplies it"
_LANGUAGE = "use a language policy ('tiny_lm' or 'causal_lm')"
_CRITIC = "use policy 'control', or set 'policy.value_head: true' on a language policy"
_LOOP = "it exists only while an objective or term is evaluated; use it in 'objective' or 'terms'"
_RECALLED = "read it in 'shaping', 'credit', 'objective' or 'terms': the loop computes it once the rewards are known"
_MULTI_TURN = "use a multi-turn task"

FIELDS: dict[str, Field] = {
    "group": Field("(N,)", "key of the group (same start) a trajectory belongs to", _ALWAYS),
    "task_id": Field("(N,)", "stable identity of the problem", _ALWAYS),
    "mask": Field("(N,T)", "true where the policy acted", _ALWAYS),
    "turn": Field("(N,T)", "turn of each action, -1 off actions", _ALWAYS),
    "length": Field("(N,)", "number of actions", _ALWAYS),
    "done": Field("(N,)", "the episode ended by itself", _ALWAYS),
    "truncated": Field("(N,)", "the episode was cut", _ALWAYS),
    "old_logp": Field("(N,T)", "log-probability of each action when it was sampled", _ALWAYS),
    "entropy": Field("(N,T)", "entropy of the policy at each action, in nats", _LOOP),
    "logp": Field("(N,T)", "log-probability of each action now, differentiable", _LOOP),
    "ref_logp": Field("(N,T)", "log-probability of each action under the reference snapshot", _RECALLED),
    "anchor_logp": Field(
        "(N,T)",
        "log-probability of each action under the snapshot 'anchor'",
        f"add the section 'preference', which makes the anchor; {_RECALLED}",
    ),
    "ref_kl": Field(
        "(N,T)",
        "KL(pi || pi_ref) in nats over the whole vocabulary at each action, differentiable",
        f"{_LANGUAGE}, and read it in 'objective' or 'terms'",
    ),
    "features": Field(
        "(N,T,D)",
        "the model's last hidden state once it has read each action, without gradient",
        f"{_LANGUAGE}, and read it in 'credit': the loop computes it after the rewards, on demand",
    ),
    "prompt_logp": Field(
        "(N,P)",
        "log-probability of each prompt token given those before; nan where there is none",
        f"{_LANGUAGE}, and read it in 'credit': the loop computes it after the rewards, on demand",
    ),
    "marks": Field(
        "mapping (N,T)",
        "which actions are of which kind: the parts that 'segments' names; switch, subgoal, action, boundary",
        f"{_LANGUAGE} and a multi-turn task, and read it in 'credit'",
    ),
    "answer_logp": Field(
        "(N,M)",
        "mean log-probability of the reference answer's tokens, were it given in place of each turn; no gradient",
        f"{_LANGUAGE} and a multi-turn task whose problems carry answers, and read it in 'credit'",
    ),
    "values": Field("(N,T)", "critic's value of the state before each action, as sampled", _CRITIC),
    "bootstrap": Field("(N,)", "critic's value of the state after the last action; 0 where done", _CRITIC),
    "value_prediction": Field("(N,T)", "critic's value now, differentiable", _CRITIC),
    "returns": Field("(N,T)", "target of the critic", "use a credit that estimates returns ('gae')"),
    "reward": Field("(N,)", "shaped outcome", "list at least one reward under 'rewards'"),
    "components": Field(
        "(N,K)",
        "rewards of each trajectory, one column each: raw, or as a shaping method changed them",
        "list at least one reward under 'rewards'",
    ),
    "component_names": Field("K strings", "names of the columns of components", "list at least one reward"),
    "component_weights": Field("(K,)", "weights of the columns of components", "list at least one reward"),
    "dense": Field("(N,T)", "reward of each action; sums to reward over actions", "list at least one reward"),
    "turn_reward": Field("(N,M)", "reward of each turn", _MULTI_TURN),
    "state_key": Field("(N,M)", "identity of the state each turn started from", _MULTI_TURN),
    "greedy_reward": Field(
        "(N,)", "reward of one greedy trajectory from the same start", "the loop draws it on demand"
    ),
    "advantage": Field("(N,T)", "credit of each action", "name a credit that estimates it before those that adjust it"),
    "outcome_advantage": Field(
        "(N,T)", "credit of each action before it was weighted by how much the action matters", "use credit 'oreal'"
    ),
    "prompt_advantage": Field("(N,T)", "credit of each action from comparing prompts", "use credit 'copo'"),
    "local_weight": Field("(N,T)", "share of advantage beside prompt_advantage, in [0,1]", "use credit 'copo'"),
    "tokens": Field("(N,T)", "token of each action", _LANGUAGE),
    "text": Field("N strings", "what the policy wrote", _LANGUAGE),
    "prompt": Field("N strings", "what the policy was asked", _LANGUAGE),
    "answer": Field("N objects", "the reference answer of the problem", "use a task whose problems carry answers"),
    "metadata": Field("N mappings", "what the task knows of the problem", _ALWAYS),
    "detail": Field(
        "N mappings", "what rewards said of a sample beside its score, by the reward's name", "it is kept for reading"
    ),
    "failure": Field(
        "N objects", "kind and message of what broke a trajectory's environment, or None", "it is kept for reading"
    ),
    "payload": Field("tensordict", "the policy's own material: latents, observations, prompt tokens", _ALWAYS),
    "external": Field(
        "(N,T)", "actions that the present policy did not sample", "list a source of such rows under 'sampling.sources'"
    ),
    "version": Field("(N,)", "which weights acted", _ALWAYS),
    "step": Field("scalar", "training step", _ALWAYS),
    "seed": Field("scalar", "seed of this step, for methods that draw", "use it in 'shaping' or 'credit'"),
}
