"""What can be said of a reward or a policy without training by it."""
