"""Where problems come from: datasets, generators, environments."""

from guerdon.tasks.base import Problem, Starts, Task

__all__ = ["Problem", "Starts", "Task"]
