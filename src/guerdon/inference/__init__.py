"""Reward-guided decoding."""
