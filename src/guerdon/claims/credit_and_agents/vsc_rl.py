"""A long task with a reward at its end teaches little to whoever fails it. VSC-RL has a generator split the goal into
subgoals, and lets the policy clone the steps that brought the present one nearer, beside what a reference does.

Played is a room of 8 x 8 cells with a key in one corner and a door in another, in 60 moves at most, by policies in a
table that begin by wandering; one in a hundred of their episodes succeeds. The generator is a script: first the cell of
the key, then the goal. Half of the time, where it is corrupted, it names any cell instead, when learning and when
measured. The baseline clones by the same filter with the goal alone. Both see as many episodes: 4 batches of 64.

The critics' tables are twins that learn from different 70 % of the attempts; there is no critic of the instruction, for
there is one instruction. The weight of the reference, the policy at the start, is 0.02, for it is no good.

On seeds 100 to 109 success after 2, 4 and 6 batches is 0.08, 0.45 and 0.78, corrupted 0.02, 0.13 and 0.34, with the
goal alone 0.02, 0.04 and 0.16; with 32 episodes a batch likewise, but by then some seeds of the goal alone have found
the door by luck, and corrupted subgoals are behind on 3 of 10. The lead does not last: after 30 batches of 32 it is
0.94, 0.67 and 0.99. The return that the filter adds is discounted, so a long success has its first steps filtered out,
and a short segment is cloned with all its detours. In a room of 6 x 6 cells, 40 moves, the goal alone is ahead from the
tenth batch on, and with a reference that succeeds in 5 % of its episodes nearly from the start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from guerdon.claims.core import Check, Claim, Mutation, check, equal, paired
from guerdon.claims.testbeds.gridworld import KeyDoor
from guerdon.control.offline import sgc_elbo, step_filter, success_loss, vsc_rl
from guerdon.credit.turn import returns_to_go
from guerdon.seeding import torch_generator
from guerdon.tasks.subgoals import cut_at_subgoals, parse_subgoals, relabel

ROOM = KeyDoor(size=8, turns=60, key=7, door=56)
CELLS, GOAL = ROOM.size**2, ROOM.size**2  # targets are cells, and the goal itself
EPISODES, STEPS, UPDATES, RATE, CRITIC_RATE, GAMMA = 64, 4, 8, 0.05, 0.3, 0.9
IMITATION, SKILL = 0.02, 0.0
FRESH = 200  # episodes by which success is measured


class Parts(NamedTuple):
    """The bound, the filter of steps, the loss, and how episodes become attempts at subgoals."""

    bound: Callable[..., Any]
    keep: Callable[..., Any]
    objective: Callable[..., Any]
    cut: Callable[..., Any]


class Episodes(NamedTuple):
    """What S * B episodes did: states (R,L+1), actions and whether they were taken (R,L), and success (R,)."""

    state: Tensor
    action: Tensor
    alive: Tensor
    success: Tensor
    plan: Tensor


def reference() -> Tensor:
    """(states, 4) logits of a policy that wanders, with a slight sense of where the key and the door are."""
    cell = torch.arange(CELLS)
    logits = []
    for target in (ROOM.key, ROOM.door):
        row, column = cell // ROOM.size, cell % ROOM.size
        down, right = (target // ROOM.size - row).sign(), (target % ROOM.size - column).sign()
        logits.append(SKILL * torch.stack([-down, down, -right, right], dim=1).double())
    return torch.cat(logits)


def meets(state: Tensor, target: Tensor, success: Tensor) -> Tensor:
    """Whether a target is met in a state (...): its cell is stood on, or the goal reached."""
    return torch.where(target == GOAL, success, state % CELLS == target)


@torch.no_grad()
def play(logits: Tensor, plan: Tensor, generators: Sequence[torch.Generator]) -> Episodes:
    """Play episodes by policies (S,targets,states,4) that are told the first target of a plan (R,K) not met yet."""
    rows = len(plan) // len(generators)
    seed = torch.arange(len(generators)).repeat_interleave(rows)
    state = ROOM.reset(torch.cat([torch.rand(rows, generator=g) for g in generators]))
    draws = torch.cat([torch.rand(rows, ROOM.turns, generator=g, dtype=torch.float64) for g in generators])
    edges = logits.softmax(dim=-1).cumsum(dim=-1)[..., :-1]
    alive, due = torch.ones(len(plan), dtype=torch.bool), torch.zeros(len(plan), dtype=torch.int64)
    states, actions, lived = [state], [], []
    success = torch.zeros_like(alive)
    for t in range(ROOM.turns):
        target = plan.gather(1, due.clamp(max=plan.shape[1] - 1).unsqueeze(1)).squeeze(1)
        action = (draws[:, t, None] > edges[seed, target, state]).sum(dim=-1)
        after = ROOM.step(state, action, draws[:, t])
        actions.append(action)
        lived.append(alive)
        success = success | (alive & after.done)
        state = torch.where(alive, after.state, state)
        states.append(state)
        due = due + (meets(state, target, success) & alive).long()
        alive = alive & ~after.done
    walked, taken, lasted = (torch.stack(x, dim=1) for x in (states, actions, lived))
    return Episodes(walked, taken, lasted, success, plan)


def plans(seeds: int, episodes: int, corrupt: float, generators: Sequence[torch.Generator], subgoals: bool) -> Tensor:
    """(R,K) targets of each episode; of the subgoals, a share is some cell instead of the key's."""
    if not subgoals:
        return torch.full((seeds * episodes, 1), GOAL)
    wrong = torch.cat([torch.rand(episodes, generator=g) < corrupt for g in generators])
    cell = torch.cat([torch.randint(CELLS, (episodes,), generator=g) for g in generators])
    return torch.stack([torch.where(wrong, cell, ROOM.key), torch.full_like(cell, GOAL)], dim=1)


def train(parts: Parts, seeds: Sequence[int], steps: int, *, subgoals: bool, corrupt: float = 0.0) -> Tensor:
    """(points, S) success before and after every second batch."""
    count, base = len(seeds), reference()
    logits = base.expand(count, CELLS + 1, -1, -1).clone().requires_grad_(True)
    critics = [
        torch.randn(CELLS + 1, len(base), generator=torch_generator(s, "critics", i)) for s in seeds for i in (0, 1)
    ]
    critic = (0.1 * torch.stack(critics).double()).view(count, 2, CELLS + 1, -1).requires_grad_(True)
    optimizers = [torch.optim.Adam([logits], lr=RATE), torch.optim.Adam([critic], lr=CRITIC_RATE)]
    play_by, plan_by, half_by = ([torch_generator(s, name) for s in seeds] for name in ("play", "plan", "halves"))
    seen = [success_rate(logits, seeds, subgoals, corrupt)]
    for step in range(steps):
        data = play(logits.detach(), plans(count, EPISODES, corrupt, plan_by, subgoals), play_by)
        batch = attempts(parts, data, count, step)
        halves = torch.stack(
            [torch.rand(len(batch["target"]) // count, 2, generator=g) < 0.7 for g in half_by]
        ).flatten(0, 1)
        for _ in range(UPDATES):
            learn_critic(critic, batch, halves, optimizers[1])
        v, last = values(critic.detach(), batch)
        kept, _ = parts.keep(batch["dense"], v, batch["turn"], batch["mask"], last, batch["done"], gamma=GAMMA)
        credit = kept.advantage
        for _ in range(UPDATES):
            logp = logits.log_softmax(dim=-1)[batch["seed"], batch["target"], batch["state"], batch["action"]]
            shown = logits.log_softmax(dim=-1)[batch["seed"], batch["target"], batch["state"], batch["shown"]]
            mask, no = batch["mask"], torch.zeros_like(batch["mask"])
            loss, _ = parts.objective(
                torch.cat([logp, shown], dim=1),
                torch.cat([credit, torch.zeros_like(credit)], dim=1),
                torch.cat([mask, mask], dim=1),
                torch.cat([no, mask], dim=1),
                imitation=IMITATION,
            )
            optimizers[0].zero_grad()
            (loss * count).backward()
            optimizers[0].step()
        if step % 2 == 1:
            seen.append(success_rate(logits, seeds, subgoals, corrupt))
    return torch.stack(seen)


def attempts(parts: Parts, data: Episodes, seeds: int, step: int) -> dict[str, Tensor]:
    """Episodes as attempts at their subgoals, with what the reference would have done in the same states."""
    after, k = data.state[:, 1:], data.plan.shape[1]
    final = data.success.unsqueeze(1) & (data.alive & ~torch.nn.functional.pad(data.alive[:, 1:], (0, 1)))
    reached = torch.stack([meets(after, data.plan[:, i : i + 1], final) for i in range(k)], dim=2)
    rows = relabel(parts.cut(reached, data.alive))
    pick = rows.episode
    state = data.state[pick][:, :-1]
    length = data.state.shape[1] - 1
    last_turn = torch.where(rows.mask, torch.arange(1, length + 1), 0).amax(dim=1)
    generator = torch_generator(step, "reference")
    edges = reference().softmax(dim=-1).cumsum(dim=-1)[..., :-1]
    draw = torch.rand(state.shape, generator=generator, dtype=torch.float64)
    return {
        "seed": (pick // (len(data.plan) // seeds)).unsqueeze(1),
        "target": data.plan[pick, rows.subgoal].unsqueeze(1),
        "state": state,
        "action": data.action[pick],
        "shown": (draw.unsqueeze(-1) > edges[state]).sum(dim=-1),
        "last": data.state[pick].gather(1, last_turn.unsqueeze(1)).squeeze(1),
        "mask": rows.mask,
        "turn": torch.where(rows.mask, torch.arange(length), -1),
        "dense": rows.dense.double(),
        "done": rows.done,
    }


def learn_critic(critic: Tensor, batch: dict[str, Tensor], halves: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """One update of the twins, each on its own part of the attempts."""
    returns = returns_to_go(batch["dense"])
    loss = torch.zeros((), dtype=torch.float64)
    for i in range(2):
        logit = critic[batch["seed"], i, batch["target"], batch["state"]]
        loss = loss + success_loss(logit, returns, batch["mask"] & halves[:, i : i + 1])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def values(critic: Tensor, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The smaller of the twins' chances of success before each step (N,T), and after the last (N,)."""
    both = critic.sigmoid().amin(dim=1)
    seed, target = batch["seed"], batch["target"]
    return both[seed, target, batch["state"]], both[seed[:, 0], target[:, 0], batch["last"]]


def success_rate(logits: Tensor, seeds: Sequence[int], subgoals: bool, corrupt: float) -> Tensor:
    """(S,) success of fresh episodes, the same starts and draws each time."""
    fresh, by = [torch_generator(s, "fresh") for s in seeds], [torch_generator(s, "fresh plan") for s in seeds]
    data = play(logits.detach(), plans(len(seeds), FRESH, corrupt, by, subgoals), fresh)
    return data.success.double().view(len(seeds), -1).mean(dim=1)


def bounds(parts: Parts, seed: int, alike: bool) -> tuple[Tensor, Tensor]:
    """The bound by segments, and that of the goal, of an MDP of two subgoals of two actions each, by enumeration.

    Whatever is done meets the subgoals, at a cost that depends on the way.
    """
    random = torch_generator(seed, "mdp")
    ways = torch.cartesian_prod(*[torch.arange(2)] * 4)  # all trajectories
    tables = torch.randn(2, 4, 2, 2, generator=random, dtype=torch.float64).log_softmax(dim=-1)
    cost = -torch.rand(2, 4, generator=random, dtype=torch.float64)
    before = torch.cat([torch.zeros_like(ways[:, :1]), ways[:, :-1]], dim=1)
    before[:, 2] = 0  # where a subgoal is met, it does not matter how
    pi, ref = tables[0 if not alike else 1], tables[1]
    logp, ref_logp = (table[torch.arange(4), before, ways] for table in (pi, ref))
    returns = torch.stack([cost[0, 2 * ways[:, 0] + ways[:, 1]], cost[1, 2 * ways[:, 2] + ways[:, 3]]], dim=1)
    segment, mask = torch.tensor([0, 0, 1, 1]).expand(16, -1), torch.ones(16, 4, dtype=torch.bool)
    chance = logp.sum(dim=1).exp()
    seen = (chance * parts.bound(returns, logp, ref_logp, segment, mask, alpha=0.5).total).sum()
    goal = (chance * (returns.sum(dim=1) / 0.5 - (chance / ref_logp.sum(dim=1).exp()).log())).sum()
    return seen, goal


def by_hand(parts: Parts) -> Iterator[Check]:
    """The bound, the filter, the loss and the cuts."""
    yield equal(
        "two subgoals' bounds and the goal's, the policy being the reference", *bounds(parts, 0, alike=True), 1e-9
    )
    yield equal("the same for another policy", *bounds(parts, 1, alike=False), 1e-9)
    dense = torch.tensor([[0.0, 0, 1], [0, 0, 0]], dtype=torch.float64)
    v = torch.tensor([[0.5, 0.3, 0.6], [0.2, 0.3, 0.32]], dtype=torch.float64)
    turn, mask = torch.arange(3).expand(2, -1), torch.ones(2, 3, dtype=torch.bool)
    last, done = torch.tensor([0.9, 0.3], dtype=torch.float64), torch.tensor([True, False])
    credit = parts.keep(dense, v, turn, mask, last, done, gamma=0.9)[0].advantage
    # G = .81, .9, 1: -.2 - .05 + .81, .3 - .05 + .9 (clipped), -.6 - .05 + 1 + 1 (clipped); G = 0: .1 - .05, .02 - .05
    yield equal("steps of a success and of a failure", credit, [[0.56, 1.0, 1.0], [0.05, 0.0, 0.0]])
    logits = torch.tensor([0.2, -0.1, 0.4], dtype=torch.float64, requires_grad=True)
    shown = torch.tensor([[0, 0, 1, 2]])  # as a reference of 1/2, 1/4, 1/4 acts
    yes = torch.ones(1, 4, dtype=torch.bool)
    loss, _ = parts.objective(logits.log_softmax(dim=0)[shown], torch.zeros(1, 4), yes, yes)
    (slope,) = torch.autograd.grad(loss, logits)
    wanted = logits.detach().softmax(dim=0) - torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    yield equal("gradient of imitation: that of KL(reference || policy)", slope, wanted)
    logp = torch.tensor([[-1.0, -2.0, -4.0, -0.5]])
    mixed, _ = parts.objective(
        logp, torch.tensor([[0.3, 0.0, 9.0, 9.0]]), yes, torch.tensor([[False, False, True, True]])
    )
    yield equal("loss of two own steps and two of the reference", mixed, 1.0 / 2 + 4.5 / 2)
    reached = torch.tensor([[[0, 1], [1, 0], [1, 0], [0, 1]], [[0, 1], [0, 0], [1, 0], [0, 0]]])
    cuts = parts.cut(reached, torch.ones(2, 4, dtype=torch.bool))
    yield equal("subgoal pursued by each turn", cuts.segment, [[0, 0, 1, 1], [0, 0, 0, 1]])
    yield equal("turns that meet theirs", cuts.reward, [[0, 1, 0, 1], [0, 0, 1, 0]])
    read = parse_subgoals("To open the door:\n1. fetch the key\n2) open the door\nDone.")
    same = read == ["fetch the key", "open the door"]
    yield check("a generator's list, read", same, expected="the two subgoals", seen=read)


def run(parts: Parts, seeds: int, first_seed: int = 0) -> Iterator[Check]:
    """By hand; then the room, with subgoals, with corrupted ones, and without."""
    yield from by_hand(parts)
    numbers = range(first_seed, first_seed + seeds)
    ours, corrupted, alone = (
        train(parts, numbers, STEPS, subgoals=subgoals, corrupt=corrupt)
        for subgoals, corrupt in ((True, 0.0), (True, 0.5), (False, 0.0))
    )
    frames = f"success after {STEPS * EPISODES} episodes"
    curves = {"subgoals": ours.T, "half of them corrupted": corrupted.T, "goal alone": alone.T}
    yield paired(
        f"{frames}, against the goal alone", ours[-1], alone[-1], curves=curves, axis="success, every 128 episodes"
    )
    yield paired(f"{frames}, half of the subgoals corrupted", corrupted[-1], alone[-1], margin=-0.05)
    yield paired(f"{frames}, right against corrupted subgoals", ours[-1], corrupted[-1])


def goal_alone(reached: Tensor, exists: Tensor) -> Any:
    """Never notice that a subgoal is met on the way to the goal."""
    blind = reached.clone()
    blind[:, :, :-1] = 0
    return cut_at_subgoals(blind, exists)


METHOD = Parts(sgc_elbo, step_filter, vsc_rl, cut_at_subgoals)
CLAIM = Claim(
    system="vsc-rl",
    run=run,
    method=METHOD,
    mutation=Mutation("episodes are not cut where a subgoal is met", METHOD._replace(cut=goal_alone)),
)
