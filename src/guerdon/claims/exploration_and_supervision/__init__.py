"""Claims of the systems for exploration and supervision."""
