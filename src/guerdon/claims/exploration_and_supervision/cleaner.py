"""Credit for an episode that succeeds in the end also rewards the calls that failed in it. Once a retry works, the
failed call and its error are taken back, and the call that works stands in its place.

Policies are tables: at each of three places they choose one of two reasonings and one of four programs that belong to
it, of which one runs (the errors are Python's); a failure may be tried anew three times, under what is known once an
error has been read, and that is a table of its own. At first 40 % of calls fail, 10 % after an error. Two groups of 16,
60 steps, DAPO; the baseline is the same with GRPO's credit on what happened. Learning rates 1, 3 and 10 were tried on
seeds 100 to 105, with fewer errors than GRPO at each and most at 10.

Everything is measured without rollback. Where all trajectories are rolled back, errors fall but what to do after one is
never learned: right answers were 91 % against 99 % on those seeds. A share of 0.7, as in the source's largest recipe,
keeps them at 99 % and has no more errors. So right answers are checked for that share; for 1 they are in the curves.
Some reward goes astray in both: a retry that thinks better puts its call under the old reasoning.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from guerdon.claims.core import Check, Claim, Mutation, check, equal, paired
from guerdon.credit.group import grpo
from guerdon.objectives.policy import dapo
from guerdon.sampling.rollback import Spliced, splice_turn, tool_failed
from guerdon.seeding import torch_generator

Splice = Callable[..., Spliced]

REASONING = ("Both belong together, so I add. ", "Each has as many, so I multiply. ")
CALLS = (  # of each reasoning: right, two that break, and another program that breaks
    ("print(17 + 25)", "print(17 + 25", "prnt(17 + 25)", "from numbas import total\ntotal([17, 25]).show()"),
    ("print(17 * 25)", "print(17 * 25", "prnt(17 * 25)", "from numbas import times\ntimes([17, 25]).show()"),
)
PLACES, TRIES, FORMS = 3, 4, len(CALLS[0])  # calls of an episode, tries at each, and forms of a call
BREAKS = torch.tensor([False, True, True, True])


def written(reasoning: int, call: int, of: int) -> str:
    """A turn: a reasoning, and the call that belongs to reasoning ``of``."""
    return f"{REASONING[reasoning]}<code>{CALLS[of][call]}</code>"


def executed(code: str) -> str:
    """What Python says to one of this file's own programs."""
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out):
            exec(code, {})  # nothing but the constants above
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return out.getvalue().strip()


def by_hand(splice: Splice) -> Iterator[Check]:
    """Programs and their errors, and turns spliced."""
    failed = [[tool_failed(executed(code)) for code in row] for row in CALLS]
    yield equal("which calls fail in Python", torch.tensor(failed).int(), BREAKS.int().expand(2, -1))
    typo, fixed, rewritten = written(0, 1, 0), "A bracket was missing. <code>print(17 + 25)</code>", written(1, 3, 1)
    seen = splice(typo, fixed)
    yield check(
        "a typo put right",
        seen.text == written(0, 0, 0) and seen.kind == "call",
        expected="the old reasoning, the new call",
        seen=repr(seen.text),
    )
    seen = splice(rewritten, fixed)
    yield check(
        "a program rewritten", seen.text == fixed and seen.kind == "turn", expected="the new turn", seen=repr(seen.text)
    )
    words = [word for word in ("error", "Error", "17 + 25<", "numbas") if word in splice(typo, fixed).text]
    yield check("what is left of the error and the failed call", not words, expected="nothing", seen=words)


@lru_cache(maxsize=2)
def edits(splice: Splice) -> Tensor:
    """(R,C,R,C,3) reasoning, reasoning of the call and form of the call that a failed and a working turn make."""
    texts = {written(i, call, of): (i, of, call) for i in range(2) for of in range(2) for call in range(FORMS)}
    out = torch.zeros(2, FORMS, 2, FORMS, 3, dtype=torch.int64)
    for place in torch.cartesian_prod(*(torch.arange(n) for n in (2, FORMS, 2, FORMS))).tolist():
        i, failed, j, works = place
        out[tuple(place)] = torch.tensor(texts[splice(written(i, failed, i), written(j, works, j)).text])
    return out


class Policies(NamedTuple):
    """Logits of reasoning (S,P,2,2) and of calls (S,P,2,2,C), by place and whether an error is read."""

    reasoning: Tensor
    call: Tensor

    @classmethod
    def start(cls, seeds: int, failing: float, after_error: float) -> Policies:
        """Reasoning by a coin; calls that break with given probability, less often once an error has been read."""
        rates = torch.tensor([failing, after_error], dtype=torch.float64)
        calls = torch.stack([1 - rates, *[rates / 3] * 3], dim=1).log()
        call = calls.view(1, 1, 2, 1, FORMS).expand(seeds, PLACES, 2, 2, FORMS).clone()
        return cls(torch.zeros(seeds, PLACES, 2, 2, dtype=torch.float64), call)

    def error_rate(self) -> Tensor:
        """(S,) probability that a call fails where no error has been read."""
        return self._breaks()[:, :, 0].mean(dim=1)

    def success(self) -> Tensor:
        """(S,) probability of a right answer without rollback: every call works within its tries, and is right."""
        right = self.reasoning.softmax(-1)[..., 0] * self.call.softmax(-1)[..., 0, 0]
        breaks = self._breaks()
        after = sum(breaks[..., 1] ** k for k in range(TRIES - 1))
        return (right[..., 0] + breaks[..., 0] * right[..., 1] * after).prod(dim=1)

    def _breaks(self) -> Tensor:
        form = self.call.softmax(-1)[..., BREAKS].sum(-1)
        return (self.reasoning.softmax(-1) * form).sum(-1)


class Episodes(NamedTuple):
    """Decisions (N,T,2), reasoning and call; the reasoning that a call stands under; where, and whether they count."""

    reasoning: Tensor
    call: Tensor
    under: Tensor
    mask: Tensor
    reward: Tensor


def play(policies: Policies, draws: Tensor, splice: Splice | None, p_rb: float) -> Episodes:
    """Episodes (N,) of each seed, by uniform numbers (S,G,P * TRIES * 2 + 1); with rollback where a splice is given."""
    seeds, each = draws.shape[:2]
    seed = torch.arange(seeds).repeat_interleave(each)
    chance = draws.flatten(0, 1)
    rolls = chance[:, -1] < p_rb if splice else torch.zeros(len(chance), dtype=torch.bool)
    table = edits(splice) if splice else None
    alive, right = torch.ones(len(seed), dtype=torch.bool), torch.ones(len(seed), dtype=torch.bool)
    columns: list[list[Tensor]] = [[], [], [], []]
    for place in range(PLACES):
        open_, first, block = alive.clone(), None, []
        for attempt in range(TRIES):
            at = 2 * (place * TRIES + attempt)
            read = min(attempt, 1)
            thought = (chance[:, at] > policies.reasoning[seed, place, read].softmax(-1)[:, 0]).long()
            edges = policies.call[seed, place, read, thought].softmax(-1).cumsum(-1)[:, :-1]
            form = (chance[:, at + 1 : at + 2] > edges).sum(1)
            breaks, under = BREAKS[form] & open_, thought
            block.append([thought, form, under, open_.clone()])
            works = open_ & ~breaks
            right &= ~works | (thought == 0)
            if first is None:
                first = (thought, form)
            elif table is not None:
                new = table[first[0], first[1], thought, form]
                back = works & rolls & ~BREAKS[new[:, 2]]
                right |= back & (new[:, 1] == 0)
                for k, value in enumerate((new[:, 0], new[:, 2], new[:, 1])):
                    block[0][k] = torch.where(back, value, block[0][k])
                for later in block[1:]:
                    later[3] = later[3] & ~back
            open_ = breaks
        alive &= ~open_
        for one in block:
            for column, value in zip(columns, one, strict=True):
                column.append(value)
    reasoning, call, under, mask = (torch.stack(column, dim=1) for column in columns)
    return Episodes(reasoning, call, under, mask, (alive & right).double())


class Trained(NamedTuple):
    """(steps + 1, S) in training: calls that fail where no error was read, and right answers, without rollback."""

    error_rate: Tensor
    success: Tensor


def train(
    splice: Splice | None, *, seeds: int, steps: int, lr: float, size: int = 16, p_rb: float = 1.0, first_seed: int = 0
) -> Trained:
    """Train a policy per seed, with two groups of ``size`` a step."""
    policies = Policies(*(x.requires_grad_(True) for x in Policies.start(seeds, 0.4, 0.1)))
    generators = [torch_generator(first_seed + s, "cleaner") for s in range(seeds)]
    place = torch.arange(PLACES * TRIES) // TRIES
    read = (torch.arange(PLACES * TRIES) % TRIES > 0).long()
    curves: list[tuple[Tensor, Tensor]] = []
    for step in range(steps + 1):
        with torch.no_grad():
            curves.append((policies.error_rate(), policies.success()))
        if step == steps:
            break
        width = 2 * PLACES * TRIES + 1
        draws = torch.stack([torch.rand(2 * size, width, generator=g, dtype=torch.float64) for g in generators])
        with torch.no_grad():
            seen = play(policies, draws, splice, p_rb)
        seed = torch.arange(seeds).repeat_interleave(2 * size).unsqueeze(1)
        thoughts = policies.reasoning.log_softmax(-1)[seed, place, read, seen.reasoning]
        calls = policies.call.log_softmax(-1)[seed, place, read, seen.under, seen.call]
        logp, mask = torch.cat([thoughts, calls], dim=1), torch.cat([seen.mask, seen.mask], dim=1)
        group = torch.arange(2 * seeds).repeat_interleave(size)
        advantage = grpo(seen.reward, group, mask)
        total = logp.new_zeros(())
        for rows in torch.arange(len(group)).split(2 * size):
            loss, _ = dapo(logp[rows], logp[rows].detach(), advantage[rows], mask[rows])
            total = total + loss
        total.backward()
        with torch.no_grad():
            for x in policies:
                assert x.grad is not None
                x.sub_(lr * x.grad)
                x.grad = None
    return Trained(*(torch.stack(column) for column in zip(*curves, strict=True)))


def run(splice: Splice, seeds: int) -> Iterator[Check]:
    """Turns by hand; then the agent, trained with and without rollback."""
    yield from by_hand(splice)
    settings: dict[str, Any] = {"seeds": seeds, "steps": 60, "lr": 10.0}
    plain = train(None, **settings)
    always, mostly = (train(splice, p_rb=share, **settings) for share in (1.0, 0.7))
    runs = {"grpo": plain, "cleaner": always, "cleaner, 0.7 of them": mostly}
    yield paired(
        "share of calls that fail after 60 steps, all trajectories rolled back",
        always.error_rate[-1],
        plain.error_rate[-1],
        better="lower",
        curves={name: each.error_rate.T for name, each in runs.items()},
        axis="calls that fail by step, without rollback",
    )
    yield paired(
        "the same, 0.7 of them rolled back",
        mostly.error_rate[-1],
        plain.error_rate[-1],
        better="lower",
    )
    yield paired(
        "right answers without rollback, 0.7 of them rolled back",
        mostly.success[-1],
        plain.success[-1],
        margin=-0.02,
        curves={name: each.success.T for name, each in runs.items()},
        axis="right answers by step, without rollback",
    )


def failed_call_stays(old: str, new: str, **options: Any) -> Spliced:
    """Keep the call that failed, under the new reasoning."""
    return Spliced(new.partition("<code>")[0] + "<code>" + old.partition("<code>")[2], "call", 1.0)


CLAIM = Claim(
    system="cleaner",
    run=run,
    method=splice_turn,
    mutation=Mutation("the failed call stays, and the new reasoning is put before it", failed_call_stays),
    quick=True,
)
