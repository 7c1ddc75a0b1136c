import copy
import itertools
import math

import pytest
import torch
from small_recipes import LANGUAGE
from transformers import AutoModelForCausalLM, LlamaConfig

from guerdon.engine.generate import GenerationOptions, Written, generate
from guerdon.errors import RecipeError
from guerdon.monitor.progress import Progress
from guerdon.policies.hugging_face import HuggingFaceModel
from guerdon.policies.language_sampling import LanguageSampling
from guerdon.policies.tiny_lm import TinyLM, TinyTransformer
from guerdon.recipe import load_recipe
from guerdon.sampling.branching import ConstrainedBeam, TrieConstraint, constrained_beam_group, constrained_beams
from guerdon.sampling.sources import Draw, Source
from guerdon.seeding import derive
from guerdon.tasks.base import Problem, Starts, Task
from guerdon.tasks.recommendation import Recommendation
from guerdon.training.loop import draw as draw_batch
from guerdon.training.loop import training_step
from guerdon.training.plan import make_plan
from guerdon.training.run import Run

PAD, END, VOCABULARY = 0, 1, 9
ITEMS = [[2, 3, END], [2, 4, END], [2, 4, 5, END], [6, END], [7, 7, 7, END], [7, 8, END], [3, 2, END]]
PROMPTS = [[5, 6, 7], [5, 6], [8, 8, 8, 8], [2]]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    network = TinyTransformer(VOCABULARY, width=16, layers=2, heads=2)
    with torch.no_grad():  # sharper than at initialisation, so that mistakes in the cache show
        network.embed.weight.mul_(20)
    return network.eval()


@pytest.fixture(scope="module")
def policy():
    torch.manual_seed(0)
    task = Recommendation(size=30, letters=4, history=2)
    policy = TinyLM(task, width=16, layers=1, heads=2)
    with torch.no_grad():
        policy.module["model"].embed.weight.mul_(20)
    return policy


@pytest.fixture(scope="module")
def task():
    return Recommendation(size=30, letters=4, history=2)


@pytest.fixture(scope="module")
def constraint(policy, task):
    return TrieConstraint([policy.encode_answer(item) for item in task.items])


@torch.no_grad()
def next_logp(model, tokens):
    """Log-probabilities of what follows, without cache or batch."""
    return model(torch.tensor([tokens]))[0, -1].double().log_softmax(0)


def item_logp(model, prompt, item):
    return sum(float(next_logp(model, [*prompt, *item[:t]])[token]) for t, token in enumerate(item))


def plain_beam(model, prompt, width):
    """Beam search one beam at a time."""
    beams = [(0.0, [])]
    while not all(written in ITEMS for _, written in beams):
        grown = []
        for score, written in beams:
            if written in ITEMS:
                grown.append((score, written))
                continue
            follow = {item[len(written)] for item in ITEMS if item[: len(written)] == written}
            logp = next_logp(model, [*prompt, *written])
            grown += [(score + float(logp[token]), [*written, token]) for token in follow]
        beams = sorted(grown, key=lambda beam: -beam[0])[:width]
    return beams


def test_what_may_follow():
    trie = TrieConstraint(ITEMS)
    assert (trie.depth, trie.size) == (4, 7)
    rows = torch.tensor([[2, 4], [7, 7], [6, END], [8, 2], [PAD, PAD], [2, -1]])
    listed = [{token for token in row if token >= 0} for row in trie.listed(rows).tolist()]
    assert listed == [{END, 5}, {7}, set(), set(), set(), set()]
    assert {t for t in trie.listed(torch.zeros(1, 0, dtype=torch.int64))[0].tolist() if t >= 0} == {2, 6, 7, 3}
    assert trie.node(rows).tolist()[3:] == [-1, -1, -1]


def test_equal_items_count_once():
    assert TrieConstraint([*ITEMS, ITEMS[0]]).size == 7


@pytest.mark.parametrize(
    ("items", "message"),
    [([], "0 items"), ([[2], []], "none of them without tokens"), ([[2, 3], [2, 3, 4]], "goes on where another ends")],
)
def test_items_that_make_no_tree_are_refused(items, message):
    with pytest.raises(ValueError, match=message):
        TrieConstraint(items)


def test_the_processor_leaves_the_odds_of_what_is_allowed():
    logits = torch.randn(2, VOCABULARY, generator=torch.Generator().manual_seed(0))
    out = TrieConstraint(ITEMS)(logits, Written(torch.arange(2), torch.tensor([[2, 4], [2, 4]])))
    p = out.softmax(dim=1)
    assert p[:, [5, END]].sum(dim=1) == pytest.approx([1.0, 1.0])
    assert p[:, 5] / p[:, END] == pytest.approx((logits[:, 5] - logits[:, END]).exp())
    log_probs = logits.log_softmax(dim=1)
    assert torch.allclose(out[:, 3], log_probs[:, 3] - 1e6)
    assert torch.equal(out[:, 5], log_probs[:, 5])


def test_sampling_under_the_processor_writes_items_only(model):
    trie = TrieConstraint(ITEMS)
    options = GenerationOptions(max_new_tokens=4, stop_tokens=(END,), temperature=2.0, processors=(trie,))
    for compact in (True, False):
        out = generate(model, PROMPTS * 30, options, pad=PAD, seed=0, compact=compact)
        written = [row[keep].tolist() for row, keep in zip(out.tokens, out.mask, strict=True)]
        assert all(item in ITEMS for item in written)
        assert len({tuple(item) for item in written}) == len(ITEMS)


def test_a_beam_as_wide_as_there_are_items_ranks_all_of_them(model):
    trie = TrieConstraint(ITEMS)
    found = constrained_beams(model, PROMPTS, trie, width=len(ITEMS), pad=PAD)
    for row, prompt in enumerate(PROMPTS):
        scores = {tuple(item): item_logp(model, prompt, item) for item in ITEMS}
        wanted = sorted(scores, key=lambda item: -scores[item])
        seen = [tuple(t[keep].tolist()) for t, keep in zip(found.tokens[row], found.mask[row], strict=True)]
        assert seen == wanted
        assert found.score[row].tolist() == pytest.approx([scores[item] for item in wanted], abs=1e-4)
        assert found.logp[row].sum(dim=1).tolist() == pytest.approx(found.score[row].tolist(), abs=1e-4)
    assert (found.tokens[~found.mask] == PAD).all()
    assert (found.logp[~found.mask] == 0).all()


@pytest.mark.parametrize("width", [1, 2, 3, 5])
def test_narrow_beams_are_those_of_a_plain_search(model, width):
    found = constrained_beams(model, PROMPTS, TrieConstraint(ITEMS), width=width, pad=PAD)
    for row, prompt in enumerate(PROMPTS):
        seen = [t[keep].tolist() for t, keep in zip(found.tokens[row], found.mask[row], strict=True)]
        wanted = plain_beam(model, prompt, width)
        assert seen == [item for _, item in wanted]
        assert found.score[row].tolist() == pytest.approx([score for score, _ in wanted], abs=1e-4)


def test_temperature_and_entropy_are_those_of_the_distribution_at_each_token(model):
    found = constrained_beams(model, PROMPTS[:1], TrieConstraint(ITEMS), width=2, pad=PAD, temperature=3.0)
    item = found.tokens[0, 1][found.mask[0, 1]].tolist()
    for t, token in enumerate(item):
        with torch.no_grad():
            logits = model(torch.tensor([[*PROMPTS[0], *item[:t]]]))[0, -1].double() / 3.0
        p = logits.softmax(0)
        assert float(found.logp[0, 1, t]) == pytest.approx(math.log(p[token]), abs=1e-4)
        assert float(found.entropy[0, 1, t]) == pytest.approx(float(-(p * p.log()).sum()), abs=1e-4)


def test_among_allowed_tokens_the_items_share_all_probability(model):
    trie = TrieConstraint(ITEMS)
    within = constrained_beams(model, PROMPTS, trie, width=7, pad=PAD, within=True)
    whole = constrained_beams(model, PROMPTS, trie, width=7, pad=PAD)
    assert within.logp.sum(dim=2).exp().sum(dim=1).tolist() == pytest.approx([1.0] * 4, abs=1e-5)
    assert (whole.logp.sum(dim=2).exp().sum(dim=1) < 0.99).all()
    assert torch.equal(within.tokens, whole.tokens)  # the order is that of the model either way
    assert torch.allclose(within.score, whole.score)


def test_models_with_a_cache_of_their_own_find_the_same():
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    config = LlamaConfig(**sizes, num_attention_heads=2, initializer_range=0.5)
    flat = HuggingFaceModel(AutoModelForCausalLM.from_config(config).eval()).eval()
    padded = HuggingFaceModel(flat.inner).eval()
    padded._flat = False
    assert flat.flat
    a, b = (constrained_beams(m, PROMPTS, TrieConstraint(ITEMS), width=4, pad=PAD) for m in (flat, padded))
    assert torch.equal(a.tokens, b.tokens)
    assert torch.allclose(a.score, b.score, atol=1e-4)


def test_more_beams_than_items_are_refused(model):
    with pytest.raises(RecipeError, match="at most 7"):
        constrained_beams(model, PROMPTS, TrieConstraint(ITEMS), width=8, pad=PAD)


# Groups -----------------------------------------------------------------------------------------------------

SAMPLING = LanguageSampling(max_new_tokens=4, temperature=0.7)


def group_of(policy, task, constraint, *, prompts=3, size=5, seed=0, **options):
    starts = Starts.repeat(task.train_batch(prompts, seed=seed), size, version=2)
    return constrained_beam_group(policy, starts, SAMPLING, constraint, **options)


def test_a_group_is_valid_distinct_and_in_order(policy, task, constraint):
    rollouts = group_of(policy, task, constraint)
    assert rollouts.group.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert rollouts.version.tolist() == [2] * 15
    assert rollouts.answer == [p.answer for p in task.train_batch(3, seed=0) for _ in range(5)]
    assert rollouts.done.all()
    assert not rollouts.truncated.any()
    assert rollouts.external is None
    for first in (0, 5, 10):
        items = rollouts.text[first : first + 5]
        assert len(set(items)) == 5
        assert set(items) <= set(task.items)
        likely = rollouts.old_logp[first : first + 5].sum(dim=1).tolist()
        assert likely == sorted(likely, reverse=True)


@pytest.mark.parametrize("mask_logp", [False, True])
def test_what_is_known_of_a_group_is_what_the_policy_says(policy, task, constraint, mask_logp):
    rollouts = group_of(policy, task, constraint, mask_logp=mask_logp)
    assert ("listed" in rollouts.payload.keys()) == mask_logp  # noqa: SIM118 - no membership test
    with torch.no_grad():
        seen = policy.evaluate(rollouts, logits=True)
        lean = policy.evaluate(rollouts)
    assert torch.allclose(seen.logp, rollouts.old_logp, atol=1e-5)
    assert torch.allclose(seen.entropy, rollouts.entropy, atol=1e-5)
    assert torch.allclose(lean.logp, seen.logp, atol=1e-6)
    assert lean.logits is None
    assert torch.allclose(seen.logits.log_softmax(-1).gather(2, rollouts.tokens.unsqueeze(2))[..., 0], seen.logp)
    total = group_of(policy, task, constraint, size=30, mask_logp=mask_logp)
    mass = total.old_logp.sum(dim=1).exp().view(3, 30).sum(dim=1)
    assert mass.tolist() == pytest.approx([1.0] * 3, abs=1e-4) if mask_logp else (mass < 0.999).all()


def test_masked_log_probabilities_have_a_finite_gradient(policy, task, constraint):
    rollouts = group_of(policy, task, constraint, mask_logp=True)
    seen = policy.evaluate(rollouts)
    (seen.logp.sum() + seen.entropy.sum()).backward()
    gradient = policy.module["model"].embed.weight.grad
    policy.module.zero_grad(set_to_none=True)
    assert torch.isfinite(gradient).all()
    assert gradient.abs().max() > 0


def test_masked_and_free_rows_can_be_joined(policy, task, constraint):
    masked, free = (group_of(policy, task, constraint, seed=s, mask_logp=s == 0) for s in (0, 1))
    shorter = policy.sample(Starts.repeat(task.train_batch(2, seed=5), 1), LanguageSampling(max_new_tokens=2), seed=0)
    with torch.no_grad():
        for parts in itertools.permutations((masked, free, shorter)):
            joined = policy.evaluate(policy.join(parts)).logp
            apart = [policy.evaluate(part).logp for part in parts]
            for rows, part in zip(joined.split([len(x) for x in apart]), apart, strict=True):
                assert torch.allclose(rows[:, : part.shape[1]], part, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top_p": 0.9}, "sampling.top_p is set"),
        ({"stop": ["a"]}, "sampling.stop is set"),
        ({"max_new_tokens": 3}, "max_new_tokens is 3"),
    ],
)
def test_options_that_cut_or_filter_items_are_refused(policy, task, constraint, changes, message):
    starts = Starts.repeat(task.train_batch(2, seed=0), 2)
    with pytest.raises(RecipeError, match=message):
        constrained_beam_group(policy, starts, LanguageSampling(**{"max_new_tokens": 4} | changes), constraint)


@pytest.mark.parametrize("group", [[0, 0, 1], [0, 1, 0, 1], [0, 0, 1, 1, 1, 1]])
def test_ragged_or_scattered_groups_are_refused(policy, task, constraint, group):
    starts = Starts(task.train_batch(len(group), seed=0), torch.tensor(group))
    with pytest.raises(RecipeError, match="groups of one size"):
        constrained_beam_group(policy, starts, SAMPLING, constraint)


# The source -------------------------------------------------------------------------------------------------


def recipe_of(home, **changes):
    recipe = copy.deepcopy(LANGUAGE) | {
        "task": {"name": "recommendation", "size": 30, "letters": 4, "history": 2},
        "sampling": {"prompts": 4, "group_size": 6, "max_new_tokens": 4, "sources": ["constrained_beam"]},
        "rewards": ["exact", "rank_discount"],
        "objective": {"name": "ppo_clip", "aggregate": "seq_mean"},
        "terms": [{"name": "kl", "beta": 0.001, "aggregate": "seq_mean"}],
        "training": {"steps": 2},
        "runs_dir": str(home),
    }
    return recipe | changes


def run_of(home, **changes):
    return Run.start(load_recipe(recipe_of(home, **changes)), overwrite=True, progress=Progress(quiet=True))


@pytest.mark.parametrize("mask_logp", [False, True])
def test_a_recipe_trains_on_beams_alone(tmp_path, monkeypatch, mask_logp):
    sources = [{"name": "constrained_beam", "mask_logp": mask_logp}]
    run = run_of(tmp_path, sampling=recipe_of(tmp_path)["sampling"] | {"sources": sources})
    monkeypatch.setattr(run.policy, "sample", lambda *a, **k: pytest.fail("the plain samples were drawn"))
    problems = run.task.train_batch(4, derive(run.recipe.seed, 0, "problems"))
    rollouts = draw_batch(run, 0, version=0).rollouts
    trie = TrieConstraint([run.policy.encode_answer(item) for item in run.task.items])
    starts = Starts.repeat(problems, 6)
    wanted = constrained_beam_group(run.policy, starts, run.sampling, trie, mask_logp=mask_logp)
    assert rollouts.text == wanted.text
    assert torch.equal(rollouts.old_logp, wanted.old_logp)
    run.policy.snapshot("ref")
    before = {name: p.detach().clone() for name, p in run.policy.trainable().items()}
    for step in range(4):
        metrics = training_step(run, step)
    assert metrics["reward/rank_discount/mean"] <= 0
    assert any(not torch.equal(before[name], p) for name, p in run.policy.trainable().items())


def test_items_may_come_from_a_file(tmp_path, policy, task):
    file = tmp_path / "items.txt"
    file.write_text("aaa\n\nbbb\ncd\n")
    starts = Starts.repeat(task.train_batch(2, seed=0), 3)
    asked = Draw(policy, task, [], SAMPLING, starts, None, None, 0, 0, 1)
    rollouts = ConstrainedBeam(items=str(file)).draw(asked)
    assert sorted(rollouts.text[:3]) == sorted(rollouts.text[3:]) == ["aaa", "bbb", "cd"]


class NoItems(Task):
    kind = "language"

    def train_batch(self, n, seed):
        return [Problem(0, "a", answer="b")] * n

    def eval_problems(self, n):
        return self.train_batch(n, 0)


@pytest.mark.parametrize(("items", "message"), [(None, "'NoItems' has no 'items'"), ("nowhere.txt", "holds no items")])
def test_missing_items_are_refused(policy, items, message):
    asked = Draw(policy, NoItems(), [], SAMPLING, Starts.repeat(NoItems().train_batch(1, 0), 2), None, None, 0, 0, 1)
    with pytest.raises(RecipeError, match=message):
        ConstrainedBeam(items=items).draw(asked)


def test_policies_that_do_not_write_are_refused(tmp_path):
    run = run_of(
        tmp_path,
        task="digits",
        policy={"name": "flow", "hidden": 8, "layers": 1},
        rewards=["digit_proxy"],
        sampling={"prompts": 2, "group_size": 2, "sources": ["constrained_beam"]},
        warm_start=None,
        terms=[],
    )
    with pytest.raises(RecipeError, match="needs a policy that writes"):
        draw_batch(run, 0, version=0)


class Other(Source):
    when = "sampling"
    replaces = True

    def draw(self, draw):
        return None


def test_two_sources_that_replace_the_samples_are_refused(tmp_path):
    recipe = recipe_of(tmp_path)
    recipe["sampling"] |= {"sources": ["constrained_beam", Other]}
    with pytest.raises(RecipeError, match="ConstrainedBeam, Other each replace"):
        make_plan(load_recipe(recipe))
