"""Whichever part of the package is imported first, it works: no circle depends on where it is entered."""

import json
import pkgutil
import subprocess
import sys

import guerdon

SCRIPT = """
import importlib, json, sys
failures = {}
for name in json.loads(sys.argv[1]):
    for loaded in [m for m in sys.modules if m.partition('.')[0] == 'guerdon']:
        del sys.modules[loaded]
    try:
        importlib.import_module(name)
    except ImportError as error:
        failures[name] = str(error)
print(json.dumps(failures))
"""


def failures(names):
    out = subprocess.run([sys.executable, "-c", SCRIPT, json.dumps(names)], capture_output=True, text=True, check=True)
    return json.loads(out.stdout)


def test_every_part_can_be_imported_first():
    names = [f"guerdon.{m.name}" for m in pkgutil.iter_modules(guerdon.__path__) if m.name != "__main__"]
    assert len(names) > 15
    assert failures(names) == {}


def test_a_part_that_cannot_be_imported_is_seen():
    assert "guerdon.nowhere" in failures(["guerdon.nowhere"])
