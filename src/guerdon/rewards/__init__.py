"""How behaviour is scored."""

from guerdon.rewards.base import Fault, Reward, Score, batched, drop_faulted, reward, score

__all__ = ["Fault", "Reward", "Score", "batched", "drop_faulted", "reward", "score"]
