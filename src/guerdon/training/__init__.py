"""The loop (``training.loop``), its updates, evaluation, checkpoints and run folder.

Nothing is imported here: monitors read run folders, and the loop uses monitors. ``guerdon.train`` is the entry.
"""
