"""Small worlds in which claims are tried: exact where they can be, and vectorised over seeds."""
