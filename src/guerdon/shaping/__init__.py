"""How raw scores become the signal that credit is drawn from."""

from guerdon.shaping.compose import weighted_sum

__all__ = ["weighted_sum"]
