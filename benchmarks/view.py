"""How soon the live page shows 500 runs, and a run with a million rollouts.

    python benchmarks/view.py [--runs 500] [--steps 2000] [--rows 500] [--json]

Writes runs as training leaves them into a temporary folder (one of each kind, then copies), serves them as
`guerdon view` does, and opens the pages in headless Chromium with an empty cache. Printed are milliseconds: `server`
until the page's first byte, `paint` until the browser has drawn its first content, and `kB` of the page; the median of
five visits. `list` is the time of one look at the files of all runs, first and again.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import tempfile
import threading
import time
from argparse import ArgumentParser
from pathlib import Path

import pyarrow.parquet as pq
import torch
from playwright.sync_api import sync_playwright

from guerdon.monitor.live.server import Server
from guerdon.monitor.live.store import RunStore
from guerdon.rollouts import make_rollouts
from guerdon.training.folder import RunFolder

VISITS, ACTIONS, GROUP = 5, 24, 10
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
RECIPE = (
    "name: {name}\ntask:\n  name: spell\npolicy:\n  name: tiny_lm\ncredit:\n  name: grpo\ntraining:\n  steps: {steps}\n"
)
WORDS = "the number of apples is seven because two and five make it so".split()
TIMING = """() => { const visit = performance.getEntriesByType('navigation')[0];
  return [visit.responseStart, performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? null,
    visit.decodedBodySize / 1000]; }"""


def write_run(path: Path, *, steps: int, rows: int, saved: int) -> None:
    """A finished run of ``steps`` steps, of which the rollouts of ``saved`` were kept."""
    folder = RunFolder.create(path, RECIPE.format(name=path.name, steps=steps))
    for step in range(steps):
        noise = ((step * 7919) % 100) / 500
        metrics = {f"seconds/{part}": 0.1 + noise for part in ("sample", "reward", "update")}
        metrics |= {f"reward/{name}/mean": step / steps * (1 - noise) for name in ("right", "short", "polite")}
        metrics |= {f"update/ppo_clip/{name}": noise for name in ("ratio", "clip_fraction", "approx_kl")}
        metrics |= {"reward/mean": step / steps * (1 - noise), "reward/std": 0.4 - noise, "length/mean": 20 + noise}
        metrics |= {"groups/zero_variance": noise, "entropy/mean": 2 - step / steps, "update/loss": noise - 0.1}
        metrics |= {"update/grad_norm": 1 + noise, "actions_per_second": 1e4 + step, "trajectories": rows}
        folder.log(step, metrics | ({"eval/greedy": step / steps} if step % 50 == 0 else {}))
    folder.flush()
    if saved:
        tokens = [[f" {WORDS[(row + k) % len(WORDS)]}" for k in range(ACTIONS)] for row in range(rows)]
        batch = rollouts(rows, ["".join(words) for words in tokens])
        first = folder.write_rollouts(0, batch, token_text=tokens)
        for step in range(1, saved):
            shutil.copyfile(first, folder.rollouts_path / f"step-{step:06d}.parquet")
        assert pq.read_metadata(first).num_rows == rows
    folder.write_summary({"run": str(path), "kind": "language", "steps": steps, "seconds": 100.0, "status": "finished"})


def rollouts(rows: int, text: list[str]):
    """A batch with per-action credit."""
    group = torch.arange(rows) // GROUP
    mask = torch.ones(rows, ACTIONS).bool()
    ends = {"done": torch.ones(rows).bool(), "truncated": torch.zeros(rows).bool(), "payload": {}}
    prompts = [f"how many apples are in basket {int(g)}?" for g in group]
    batch = make_rollouts(group, group, mask, torch.zeros(rows, ACTIONS), prompt=prompts, text=text, **ends)
    generator = torch.Generator().manual_seed(0)
    batch.rewards["right"] = torch.rand(rows, generator=generator).round(decimals=1)
    batch.reward = batch.rewards["right"]
    batch.advantage = torch.randn(rows, ACTIONS, generator=generator)
    return batch


def milliseconds(work) -> float:
    began = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - began)


def visits(browser, address: str) -> dict[str, float]:
    """Medians over visits with an empty cache."""
    seen = []
    for _ in range(VISITS):
        context = browser.new_context(viewport={"width": 1280, "height": 800})
        page = context.new_page()
        page.goto(address)
        timing = page.evaluate(TIMING)
        while timing[1] is None:  # the page was loaded before it was drawn
            page.wait_for_timeout(20)
            timing = page.evaluate(TIMING)
        seen.append(timing)
        context.close()
    return {
        name: round(statistics.median(column), 1)
        for name, column in zip(("server", "paint", "kB"), zip(*seen, strict=True), strict=True)
    }


def measure(root: Path, runs: int, steps: int, rows: int) -> dict[str, dict[str, float]]:
    """Every page's numbers by its name."""
    small = root / "run-000"
    write_run(small, steps=60, rows=20, saved=2)
    for k in range(1, runs - 1):
        shutil.copytree(small, root / f"run-{k:03}")
    write_run(root / "large", steps=steps, rows=rows, saved=steps)
    store = RunStore(root)
    out = {"list": {"first": milliseconds(store.rows), "again": milliseconds(lambda: store.rows(fresh=True))}}
    server = Server(root, port=0, token=False)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    pages = {
        f"{runs} runs": "",
        f"filter {runs} runs": "?q=run+9&sort=reward",
        "run, small": "run/run-001",
        f"run, {steps * rows} rollouts": "run/large",
        f"microscope, {steps * rows} rollouts": "run/large?view=rollouts",
        "microscope, last groups": f"run/large?view=rollouts&step={steps // 2}&first={rows // GROUP - 3}",
        "comparison of 8": "compare?" + "&".join(f"run=run-{k:03}" for k in range(8)),
    }
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        out |= {name: visits(browser, server.address + address) for name, address in pages.items()}
        browser.close()
    server.should_exit = True
    thread.join()
    return out


def main() -> None:
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "runs"
        root.mkdir()
        found = measure(root, options.runs, options.steps, options.rows)
    if options.json:
        json.dump(found, sys.stdout, indent=2)
        return
    for name, numbers in found.items():
        print(f"{name:32s}" + "".join(f"{key} {value:8.1f}   " for key, value in numbers.items()))


if __name__ == "__main__":
    main()
