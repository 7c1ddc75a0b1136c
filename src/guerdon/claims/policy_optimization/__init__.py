"""Claims of the policy-optimisation systems."""
