"""Search over text: prompts, the words they are made of, and ideas that are tried out."""

from guerdon.evolve.execution import SearchRecord, Tried, execution_guided_search, patched, ranked_ideas, repaired
from guerdon.evolve.prompts import Pruned, PruneResult, greedy_prune, prompt_quine, rerank
from guerdon.evolve.pruning import (
    genetic_search,
    greedy_append,
    influential,
    kl_influence,
    one_per_cluster,
    particle_swarm,
    reward_influence,
)

__all__ = [
    "PruneResult",
    "Pruned",
    "SearchRecord",
    "Tried",
    "execution_guided_search",
    "genetic_search",
    "greedy_append",
    "greedy_prune",
    "influential",
    "kl_influence",
    "one_per_cluster",
    "particle_swarm",
    "patched",
    "prompt_quine",
    "ranked_ideas",
    "repaired",
    "rerank",
    "reward_influence",
]
