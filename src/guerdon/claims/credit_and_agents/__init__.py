"""Claims of the systems for credit assignment and agents."""
