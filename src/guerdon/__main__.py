"""``python -m guerdon`` is ``guerdon``."""

from guerdon.cli.main import run_app

if __name__ == "__main__":
    run_app()
