"""What acts."""

from guerdon.policies.base import Evaluation, Policy, SamplingOptions

__all__ = ["Evaluation", "Policy", "SamplingOptions"]
