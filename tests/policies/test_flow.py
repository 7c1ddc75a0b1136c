import math

import pytest
import torch

from guerdon.errors import RecipeError
from guerdon.policies.flow import FlowPolicy, FlowSampling
from guerdon.registry import describe
from guerdon.tasks.base import Problem, Starts, Task

PLAIN = FlowSampling()


class Plane(Task):
    """Points of the plane around three centres."""

    kind = "flow"
    dimensions, classes = 2, 3

    def train_batch(self, n, seed):
        generator = torch.Generator().manual_seed(seed)
        points = torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 2.0]])
        return [
            Problem(i % 3, f"point {i % 3}", points[i % 3] + 0.1 * torch.randn(2, generator=generator), i % 3)
            for i in range(n)
        ]

    def eval_problems(self, n):
        return self.train_batch(n, 1)


def make(seed=0, **options):
    torch.manual_seed(seed)
    return FlowPolicy(Plane(), **{"hidden": 16, "layers": 1, "steps": 5, "eval_steps": 8, **options})


def starts(prompts=3, group_size=4, version=0):
    return Starts.repeat(Plane().train_batch(prompts, 0), group_size, version)


def rows_through_network(policy):
    """Rows of every call of the network, in order."""
    seen = []
    policy.module.register_forward_hook(lambda module, args, output: seen.append(len(output)))
    return seen


def nudge(policy):
    with torch.no_grad():
        for p in policy.module.parameters():
            p.add_(0.05 * torch.sin(torch.arange(p.numel()).reshape(p.shape).float()))


# Sampling -------------------------------------------------------------------------------------------------


def test_a_batch_has_the_shapes_of_the_contract():
    rollouts = make().sample(starts(3, 4, version=7), PLAIN, seed=1)
    assert rollouts.batch_size == torch.Size([12])
    assert rollouts.payload["latents"].shape == (12, 6, 2)
    assert torch.equal(rollouts.payload["sample"], rollouts.payload["latents"][:, -1])
    assert rollouts.payload["times"][3].tolist() == pytest.approx([1, 0.8, 0.6, 0.4, 0.2, 0])
    assert rollouts.payload["label"].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert rollouts.task_id.tolist() == rollouts.payload["label"].tolist()
    assert rollouts.prompt[4] == "point 1"
    assert rollouts.mask.tolist() == [[True] * 4 + [False]] * 12
    assert rollouts.old_logp[:, -1].eq(0).all()
    assert rollouts.done.all()
    assert not rollouts.truncated.any()
    assert rollouts.version.eq(7).all()


def test_the_latents_follow_the_recorded_noise():
    """The standardised jumps of the chain are standard normal and differ between rows and steps."""
    policy = make()
    rollouts = policy.sample(starts(3, 400), PLAIN, seed=1)
    x, times = rollouts.payload["latents"], rollouts.payload["times"]
    jumps = []
    for k in range(5):
        v = policy.velocity(x[:, k], times[:, k], rollouts.payload["label"])
        step = policy.sampler.step(v, x[:, k], times[:, k], times[:, k + 1])
        jumps.append((x[:, k + 1] - step.mean) / step.std.unsqueeze(-1))
    jumps = torch.stack([x[:, 0], *jumps]).detach()
    count = jumps.numel()
    assert abs(jumps.mean().item()) < 5 / math.sqrt(count)
    assert abs(jumps.var().item() - 1) < 5 * math.sqrt(2 / count)
    assert torch.corrcoef(jumps.reshape(6, -1)).fill_diagonal_(0).abs().max() < 5 / math.sqrt(1200 * 2)
    assert jumps.flatten().unique().numel() > 0.99 * count


def test_sampling_is_a_pure_function_of_its_seed():
    policy = make()
    torch.manual_seed(1)
    first = policy.sample(starts(), PLAIN, seed=5)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = policy.sample(starts(), PLAIN, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.payload["latents"], second.payload["latents"])
    assert not torch.equal(first.payload["latents"], policy.sample(starts(), PLAIN, seed=6).payload["latents"])


@pytest.mark.parametrize("same_latent", [False, True])
def test_a_trajectory_does_not_depend_on_the_rest_of_the_batch(same_latent):
    policy, options = make(), FlowSampling(same_latent=same_latent)
    whole = starts(3, 4)
    part = Starts([whole.problems[i] for i in (8, 9, 4)], whole.group[[8, 9, 4]])
    latents = policy.sample(whole, options, seed=5).payload["latents"]
    torch.testing.assert_close(policy.sample(part, options, seed=5).payload["latents"], latents[[8, 9, 4]])


def test_same_latent_gives_each_group_one_noise():
    latents = make().sample(starts(3, 4), FlowSampling(same_latent=True), seed=1).payload["latents"]
    assert torch.equal(latents[:4, 0], latents[:1, 0].expand(4, 2))
    assert len(latents[:, 0].unique(dim=0)) == 3
    assert len(latents[:, 1].unique(dim=0)) == 12
    apart = make().sample(starts(3, 4), PLAIN, seed=1).payload["latents"]
    assert len(apart[:, 0].unique(dim=0)) == 12


@pytest.mark.parametrize("seed", range(6))
def test_the_fast_window_is_noisy_and_trained_inside_only(seed):
    policy = make(steps=6)
    seen = rows_through_network(policy)
    rollouts = policy.sample(starts(3, 4), FlowSampling(same_latent=True, window=2), seed=seed)
    inside = rollouts.mask[0].nonzero().flatten().tolist()
    first = inside[0]
    assert inside == [first, first + 1]
    assert torch.equal(rollouts.mask, rollouts.mask[:1].expand(12, 6))
    assert rollouts.payload["noise"][0].nonzero().flatten().tolist() == inside
    latents = rollouts.payload["latents"]
    assert torch.equal(latents[:4, : first + 1], latents[:1, : first + 1].expand(4, -1, -1))
    assert len(latents[:4, first + 1].unique(dim=0)) == 4
    assert seen == [3] * first + [12] * (6 - first)
    rest = policy.complete(latents[:, first + 2], rollouts.payload["times"][0, first + 2], _labels(), 6 - first - 2)
    torch.testing.assert_close(rest, rollouts.payload["sample"])


def _labels():
    return torch.arange(3).repeat_interleave(4)


def test_windows_move():
    found = {
        make().sample(starts(1, 1), FlowSampling(window=1), seed=s).mask[0].int().argmax().item() for s in range(40)
    }
    assert found == {0, 1, 2, 3}


def test_shared_prefixes_reach_the_right_rows_when_groups_are_scattered():
    problems = Plane().train_batch(2, 0)
    scattered = Starts([problems[i] for i in (1, 0, 1, 0)], torch.tensor([9, 4, 9, 4]))
    policy = make()
    payload = policy.sample(scattered, FlowSampling(same_latent=True, window=1), seed=3).payload
    assert torch.equal(payload["latents"][0, 0], payload["latents"][2, 0])
    assert torch.equal(payload["latents"][1, 0], payload["latents"][3, 0])
    assert not torch.equal(payload["latents"][0, 0], payload["latents"][1, 0])
    first = payload["noise"][0].nonzero()[0].item()
    ahead = [payload["latents"][:, 0]]
    for k in range(first):
        v = policy.velocity(ahead[-1], payload["times"][0, k], payload["label"])
        ahead.append(ahead[-1] - 0.2 * v)
    torch.testing.assert_close(payload["latents"][:, first], ahead[-1])


def test_timestep_fraction_leaves_out_the_last_steps():
    mask = make().sample(starts(1, 1), FlowSampling(timestep_fraction=0.6), seed=0).mask
    assert mask[0].tolist() == [True] * 3 + [False] * 2
    assert make(steps=1).sample(starts(1, 1), PLAIN, seed=0).mask.tolist() == [[True]]


@pytest.mark.parametrize("kind", ["cps", "ddim"])
def test_a_last_step_without_noise_is_never_trained(kind):
    mask = make(kind=kind).sample(starts(1, 1), FlowSampling(timestep_fraction=1), seed=0).mask
    assert mask[0].tolist() == [True] * 4 + [False]


def test_greedy_is_the_noise_free_path_and_has_nothing_to_train():
    policy = make(logp_reduce="sum")
    rollouts = policy.sample(starts(), PLAIN, seed=2, greedy=True)
    assert rollouts.mask.shape == (12, 8)
    assert not rollouts.mask.any()
    x_1 = rollouts.payload["latents"][:, 0]
    torch.testing.assert_close(policy.complete(x_1, 1.0, _labels(), 8), rollouts.payload["sample"])
    evaluation = policy.evaluate(rollouts)
    assert evaluation.logp.eq(0).all()
    assert evaluation.logp.shape == evaluation.entropy.shape == (12, 8)


def test_evaluation_draws_a_latent_for_every_trajectory():
    assert make().evaluation_options(FlowSampling(same_latent=True, window=1)) == PLAIN


# Evaluation -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["flow_sde", "dance_sde", "cps", "ddim"])
@pytest.mark.parametrize("options", [PLAIN, FlowSampling(same_latent=True, window=2)])
def test_evaluate_repeats_the_sampled_logp_in_one_call(kind, options):
    policy = make(kind=kind, guidance=None)
    rollouts = policy.sample(starts(), options, seed=1)
    seen = rows_through_network(policy)
    logp = policy.evaluate(rollouts).logp
    assert seen == [int(rollouts.mask.sum())]
    torch.testing.assert_close(logp, rollouts.old_logp, atol=1e-5, rtol=1e-5)
    assert rollouts.old_logp[rollouts.mask].ne(0).all()
    nudge(policy)
    assert (policy.evaluate(rollouts).logp - logp)[rollouts.mask].abs().min() > 0


def test_logp_and_entropy_of_one_step_by_hand():
    """Step 1 of 5: t = .8, t' = .6, sigma = .7 sqrt(.8 / .2) = 1.4, std = 1.4 sqrt(.2)."""
    policy = make(logp_reduce="sum")
    rollouts = policy.sample(starts(), PLAIN, seed=1)
    nudge(policy)
    x, x_next = rollouts.payload["latents"][5, 1], rollouts.payload["latents"][5, 2]
    v = policy.module(x[None], torch.tensor([0.8]), torch.tensor([1]))[0]
    mean = x * (1 - 1.96 * 0.2 / 1.6) - v * (1 + 1.96 * 0.2 / 1.6) * 0.2
    normal = torch.distributions.Normal(mean, 1.4 * math.sqrt(0.2))
    evaluation = policy.evaluate(rollouts)
    torch.testing.assert_close(evaluation.logp[5, 1], normal.log_prob(x_next).sum())
    torch.testing.assert_close(evaluation.entropy[5, 1], 2 * normal.entropy()[0])
    assert evaluation.entropy[:, -1].eq(0).all()


def test_masked_steps_carry_no_gradient():
    policy = make()
    rollouts = policy.sample(starts(), PLAIN, seed=1)
    rollouts.mask[:] = False
    rollouts.mask[0, 2] = True
    policy.evaluate(rollouts).logp.sum().backward()
    kept = policy.module.inward.weight.grad.clone()
    policy.module.zero_grad()
    rollouts.payload["latents"][1:] = 1e3
    policy.evaluate(rollouts).logp.sum().backward()
    assert torch.equal(policy.module.inward.weight.grad, kept)
    assert kept.abs().sum() > 0


def test_kl_to_a_snapshot():
    policy = make()
    rollouts = policy.sample(starts(), PLAIN, seed=1)
    policy.snapshot("ref")
    assert policy.step_kl(rollouts).eq(0).all()
    nudge(policy)
    before = {name: p.detach().clone() for name, p in policy.trainable().items()}
    kl = policy.step_kl(rollouts)
    assert all(torch.equal(p, before[name]) for name, p in policy.trainable().items())
    with policy.using("ref"), torch.no_grad():
        ref = policy.velocity(rollouts.payload["latents"][:, 1], 0.8, rollouts.payload["label"])
    now = policy.velocity(rollouts.payload["latents"][:, 1], 0.8, rollouts.payload["label"])
    # (dt / 2) (1 / sigma + sigma (1 - t) / (2 t))^2 |v - v_ref|^2 at sigma = 1.4, t = .8, dt = .2
    expected = 0.1 * (1 / 1.4 + 1.4 * 0.2 / 1.6) ** 2 * ((now - ref) ** 2).sum(dim=1)
    torch.testing.assert_close(kl[:, 1], expected)
    assert kl[:, -1].eq(0).all()
    kl.sum().backward()
    assert policy.module.inward.weight.grad.abs().sum() > 0


def test_policy_gradient_moves_samples_towards_the_reward():
    """Reward the first coordinate: the mean of noise-free samples must follow."""
    policy = make(hidden=32)
    optimizer = torch.optim.Adam(policy.module.parameters(), lr=3e-3)

    def greedy():
        return policy.sample(starts(3, 30), PLAIN, seed=0, greedy=True).payload["sample"][:, 0].mean().item()

    before = greedy()
    for step in range(15):
        rollouts = policy.sample(starts(3, 30), PLAIN, seed=step)
        reward = rollouts.payload["sample"][:, 0]
        advantage = (reward - reward.mean()) / reward.std()
        loss = -(policy.evaluate(rollouts).logp * advantage[:, None]).sum(dim=1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert greedy() > before + 0.5


# Network, guidance, warm start ------------------------------------------------------------------------------


def test_guidance_extrapolates_from_the_null_condition_without_its_gradient():
    policy = make(guidance=3.0)
    x, t, label = torch.randn(4, 2, generator=torch.Generator().manual_seed(0)), torch.full((4,), 0.5), _labels()[:4]
    wanted, null = policy.module(x, t, label), policy.module(x, t, torch.full((4,), 3))
    v = policy.velocity(x, 0.5, label)
    torch.testing.assert_close(v, null + 3 * (wanted - null))
    v.sum().backward()
    grad = policy.module.label.weight.grad
    assert grad[0].abs().sum() > 0
    assert grad[3].abs().sum() == 0


def test_complete_is_exact_for_a_straight_path_and_the_identity_at_zero():
    policy = make()
    policy.module.forward = lambda x, t, label: torch.tensor([1.0, -2.0]).expand_as(x)
    x = torch.tensor([[0.0, 0.0], [1.0, 1.0], [3.0, 3.0]])
    out = policy.complete(x, torch.tensor([0.0, 0.5, 1.0]), torch.zeros(3, dtype=torch.int64), 7)
    torch.testing.assert_close(out, torch.tensor([[0.0, 0.0], [0.5, 2.0], [2.0, 5.0]]))


@pytest.mark.parametrize("kind", ["flow_sde", "ddim"])
def test_completing_from_a_latent_of_the_greedy_path_ends_at_its_sample(kind):
    policy = make(kind=kind)
    payload = policy.sample(starts(), PLAIN, seed=2, greedy=True).payload
    out = policy.complete(payload["latents"][:, 3], payload["times"][:, 3], _labels(), 5)
    torch.testing.assert_close(out, payload["sample"], rtol=1e-4, atol=1e-5)
    clean = policy.complete(payload["sample"], 0.0, _labels(), 3)
    torch.testing.assert_close(clean, payload["sample"])


def test_warm_start_loss_is_the_error_of_the_velocity():
    """A network that answers x_1 - x_0 exactly has loss 0; one that answers 0 has E|x_1 - x_0|^2 / D."""
    policy, problems = make(), Plane().train_batch(3000, 0)
    x_0 = torch.stack([p.answer for p in problems])
    policy.module.forward = lambda x, t, label: (x - x_0) / t.unsqueeze(-1)
    assert policy.supervised_loss(problems, 1).item() == pytest.approx(0, abs=1e-3)
    policy.module.forward = lambda x, t, label: torch.zeros_like(x)
    expected = 1 + (x_0**2).mean().item()
    assert policy.supervised_loss(problems, 1).item() == pytest.approx(expected, rel=0.08)


def test_warm_start_loss_is_a_pure_function_of_its_seed():
    policy, problems = make(), Plane().train_batch(30, 0)
    assert policy.supervised_loss(problems, 1) == policy.supervised_loss(problems, 1)
    assert policy.supervised_loss(problems, 1) != policy.supervised_loss(problems, 2)


@pytest.mark.parametrize(("dropout", "touched"), [(0.0, [0, 1, 2]), (1.0, [3]), (0.5, [0, 1, 2, 3])])
def test_label_dropout_trains_the_null_condition(dropout, touched):
    policy = make(label_dropout=dropout)
    policy.supervised_loss(Plane().train_batch(60, 0), 1).backward()
    grad = policy.module.label.weight.grad.abs().sum(dim=1)
    assert grad.nonzero().flatten().tolist() == touched


@pytest.mark.parametrize("kind", ["flow_sde", "ddim"])
def test_warm_start_learns_the_centres(kind):
    policy, task = make(hidden=64, kind=kind, eval_steps=20), Plane()
    optimizer = torch.optim.Adam(policy.module.parameters(), lr=3e-3)
    for step in range(250):
        optimizer.zero_grad()
        policy.supervised_loss(task.train_batch(128, step), step).backward()
        optimizer.step()
    sample = policy.sample(starts(3, 50), PLAIN, seed=0, greedy=True).payload["sample"].reshape(3, 50, 2)
    centres = torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 2.0]])
    assert (sample.mean(dim=1) - centres).norm(dim=1).max() < 0.3
    assert sample.std(dim=1).max() < 0.5


def test_state_round_trip_is_bit_identical():
    policy, other = make(0), make(1)
    policy.snapshot("ref")
    nudge(policy)
    other.load_state_dict(policy.state_dict())
    ours, theirs = (p.sample(starts(), PLAIN, seed=1) for p in (policy, other))
    assert torch.equal(ours.payload["latents"], theirs.payload["latents"])
    assert torch.equal(policy.step_kl(ours), other.step_kl(theirs))


# Refusals -------------------------------------------------------------------------------------------------


def test_a_task_of_another_kind_is_refused():
    class Words(Plane):
        kind = "language"
        dimensions = property()

    with pytest.raises(RecipeError, match="'Words'.*use task 'digits'"):
        FlowPolicy(Words())


@pytest.mark.parametrize("name", ["steps", "eval_steps"])
def test_no_steps_are_refused(name):
    with pytest.raises(RecipeError, match=f"'{name}' is 0; want at least 1"):
        make(**{name: 0})


@pytest.mark.parametrize("start", [3, -1, "1", None])
def test_a_start_that_is_no_class_is_refused(start):
    with pytest.raises(RecipeError, match="want a class from 0 to 2"):
        make().sample(Starts.repeat([Problem(0, start=start)], 2), PLAIN, seed=0)


def test_an_answer_that_is_no_sample_cannot_be_imitated():
    with pytest.raises(RecipeError, match=r"shape \(3,\), want \(2,\)"):
        make().supervised_loss([Problem(0, answer=torch.zeros(3), start=0)], 0)
    with pytest.raises(RecipeError, match="remove 'warm_start'"):
        make().supervised_loss([Problem(0, answer="three", start=0)], 0)


def test_a_window_wider_than_the_trained_steps_is_refused():
    with pytest.raises(RecipeError, match="'window' is 5, but only 4 of 5 steps"):
        make().sample(starts(), FlowSampling(window=5), seed=0)


def test_recipe_options_are_validated_by_the_signature():
    method = describe("policy", FlowPolicy, "flow")
    assert method.validate({"kind": "cps", "noise": 0.5})["kind"] == "cps"
    with pytest.raises(RecipeError, match="no option 'step'; did you mean 'steps'"):
        method.validate({"step": 3})
    with pytest.raises(RecipeError, match="'kind' is 'flow_ode'"):
        method.validate({"kind": "flow_ode"})


@pytest.mark.parametrize("settings", [{"kind": "ode"}, {"noise": 0.0}, {"kind": "cps", "steps": 1}])
def test_a_sampler_without_noise_has_nothing_to_train(settings):
    with pytest.raises(RecipeError, match="is deterministic, so its steps have no log-probability to train"):
        FlowPolicy(Plane(), **settings)
