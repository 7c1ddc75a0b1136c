"""A reward that never comes back, in a module that is quick to import."""

import time


def hangs(text: str) -> float:
    time.sleep(60 if "c" in text else 0)
    return 1.0
