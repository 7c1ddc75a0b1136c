"""Choosing among candidates of which several things are wanted."""

from guerdon.optimize.pareto import dominates, non_dominated

__all__ = ["dominates", "non_dominated"]
