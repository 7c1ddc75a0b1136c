"""Claims of the task-reward systems."""
