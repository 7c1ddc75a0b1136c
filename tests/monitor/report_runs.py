"""Folders as runs leave them, and a reader of pages, for the tests of the report and its pieces."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import torch

from guerdon.monitor.batch import batch_metrics
from guerdon.rollouts import Rollouts, make_rollouts
from guerdon.training.folder import RunFolder

# Ends what text stands in, carries out a script, swallows, colours and reorders.
HOSTILE = "</pre></div><script>alert('x')</script><img src=x onerror=alert(1)>&amp;\x07\x1b[31m\u202eabc\u200f\x85"


class Page(HTMLParser):
    """Every start tag with its attributes, and the text between; refuses tags that close something else."""

    VOID = frozenset({"meta", "link", "img", "br"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = str(html)
        self.tags: list[tuple[str, dict[str, Any]]] = []
        self.open: list[str] = []
        self.data = ""
        self.feed(str(html))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes something else"
        self.data += " " if tag in ("td", "th", "dt", "dd", "div") else ""

    def handle_data(self, data):
        self.data += data

    @property
    def text(self) -> str:
        """What is read, with single spaces."""
        return " ".join(self.data.split())

    def all(self, tag: str, css: str | None = None) -> list[dict[str, Any]]:
        """Attributes of every ``tag``, or of those of a CSS class."""
        return [a for name, a in self.tags if name == tag and (css is None or css in (a.get("class") or "").split())]


def rollouts_of(kind: str, step: int, text: str | None = None) -> Rollouts:
    """Two groups of four trajectories of three actions; of a flow policy the states on the way are known."""
    n, generator = 8, torch.Generator().manual_seed(step)
    payload, fields = {}, {}
    if kind == "flow":
        latents = torch.randn(n, 4, 64, generator=generator)
        payload = {"latents": latents, "sample": latents[:, -1]}
    if kind == "language":
        fields = {
            "prompt": [f"spell {text or 'sun'}"] * n,
            "text": [text or "n u s"] * n,
            "answer": [text or "nus"] * n,
        }
    rollouts = make_rollouts(
        torch.arange(2).repeat_interleave(4),
        torch.arange(2).repeat_interleave(4),
        torch.ones(n, 3).bool(),
        torch.zeros(n, 3),
        done=torch.ones(n).bool(),
        truncated=torch.zeros(n).bool(),
        payload=payload,
        **fields,
    )
    reward = torch.rand(n, generator=generator)
    rollouts.rewards["task"] = reward.unsqueeze(1) * torch.ones(n, 3) / 3 if kind == "control" else reward
    rollouts.watch["gold"] = torch.rand(n, generator=generator)
    rollouts.reward = reward
    rollouts.advantage = (reward - reward.mean()).unsqueeze(1) * torch.tensor([1.0, -1.0, 0.5])
    return rollouts


def run(
    path: Path, kind: str = "language", steps: int = 12, finished: bool = True, text: str | None = None, seed: int = 0
) -> RunFolder:
    """A folder as a run of ``kind`` leaves it."""
    recipe = f"name: {path.name}\nseed: {seed}\ntask:\n  name: spell\ncredit: {{name: grpo}}\n"
    folder = RunFolder.create(path, recipe + "evaluation: {problems: 50}\n" + (f"# {text}\n" if text else ""))
    for step in range(steps):
        rollouts = rollouts_of(kind, step + 100 * seed, text)
        extra = {"update/loss": 0.1 / (step + 1), "update/grad_norm": 1.0 + step, "actions_per_second": 1e4 + step}
        extra |= {"update/lr": 1e-3, "update/kl/kl": 0.01 * step, "odd/metric": step % 3}
        extra |= {"eval/greedy": 0.3 + step / 100 + seed / 1000} if step % 5 == 4 else {}
        folder.log(step, batch_metrics(rollouts) | extra)
        if step in (0, 6, steps - 1):
            words = [["n", "u", "s"]] * 8 if text is None else [[text[:8], text[8:20], text[20:]]] * 8
            folder.write_rollouts(step, rollouts, token_text=words if kind == "language" else None)
    folder.flush()
    if finished:
        evaluations = {"before": {"sampled": 0.2, "greedy": 0.25}, "after": {"sampled": 0.5, "greedy": 0.125}}
        folder.write_summary(
            {
                "run": path.name,
                "kind": kind,
                "steps": steps,
                "seconds": 83.4,
                "eval": evaluations,
                "alarms": [],
                "weights_sha256": "f00d" * 16,
                "status": "finished",
            }
        )
    return folder
