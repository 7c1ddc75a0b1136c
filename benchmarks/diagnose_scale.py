"""How long `guerdon diagnose` takes for a million rollouts, and how much memory.

    python benchmarks/diagnose_scale.py [--rollouts 1000000] [--folder /tmp/scale]

Writes a log of that many rollouts, over 1 KB of text each, as Parquet and as JSON lines, reads each in a process of its
own, and prints seconds and the largest resident size. The aim is 60 s and 2 GB for a million.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import duckdb

# 34 hashes of 32 characters are 1.1 KB that hardly compress.
WORDS = 34
GROUP, STEP_ROWS = 8, 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--formats", nargs="+", default=["parquet", "jsonl"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        print(f"{'format':8} {'rollouts':>10} {'GB':>6} {'seconds':>8} {'CPU s':>6} {'peak MB':>8}  findings")
        for kind in options.formats:
            file = folder / f"rollouts.{kind}"
            write(file, options.rollouts)
            print(row(kind, file, options.rollouts), flush=True)
            file.unlink()


def write(file: Path, rollouts: int) -> None:
    """A healthy log: a reward that half of the rollouts earn, more of them by and by."""
    text = f"array_to_string(list_transform(range({WORDS}), lambda k: md5((i * {WORDS} + k)::varchar)), ' ')"
    chance = f"hash(i) % 1000 < 300 + 400 * i // {rollouts}"
    query = (
        f"select i // {STEP_ROWS} as step, 'question ' || (i // {GROUP}) as prompt, {text} as completion, "
        f"({chance})::int as reward from range({rollouts}) r(i)"
    )
    how = "format parquet, compression zstd" if file.suffix == ".parquet" else "format json"
    duckdb.sql(f"copy ({query}) to '{file}' ({how})")


def row(kind: str, file: Path, rollouts: int) -> str:
    """Time and memory of the command."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "guerdon", "diagnose", str(file), "--json", "--quiet"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    out = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    if status:
        raise SystemExit(f"diagnose failed with status {status}")
    found = [f"{finding['severity']} {finding['code']}" for finding in json.loads(out)["findings"]]
    size, peak, cpu = file.stat().st_size / 1e9, usage.ru_maxrss / 1e3, usage.ru_utime + usage.ru_stime
    return f"{kind:8} {rollouts:10,} {size:6.2f} {seconds:8.1f} {cpu:6.1f} {peak:8.0f}  {', '.join(found) or 'none'}"


if __name__ == "__main__":
    main()
