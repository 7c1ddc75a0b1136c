"""Small experiments that prove what guerdon says of itself."""
