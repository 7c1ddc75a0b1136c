"""The command line: train, eval, methods, systems, claims, schema, init, report."""

from guerdon.cli.main import app

__all__ = ["app"]
