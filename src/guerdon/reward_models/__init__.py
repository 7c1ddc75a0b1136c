"""Reward models: how they are trained, and how good they are."""
