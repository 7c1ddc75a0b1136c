import math

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config

from guerdon.engine.generate import GenerationOptions, generate
from guerdon.inference.guidance import (
    ControlledLM,
    DimensionController,
    SentenceController,
    sentence_embeddings,
    sentence_numbers,
    with_controls,
)
from guerdon.policies.causal_lm import CausalLM
from guerdon.policies.language_sampling import LanguageSampling
from guerdon.policies.tiny_lm import TinyLM, build_tokenizer
from guerdon.tasks.base import Problem, Starts, Task

WIDTH, SAMPLING = 16, LanguageSampling(max_new_tokens=9, temperature=0.9)
MIXED = torch.tensor([[1.0, 0.0], [-1.0, 0.5], [0.0, 0.0], [0.3, -0.8]])


class Words(Task):
    """Three prompts over letters and full stops."""

    kind = "language"

    def train_batch(self, n, seed):
        return [Problem(i, prompt=p, answer="a.b.") for i, p in enumerate(["ab", "b", "abba.", "ab"])][:n]

    def eval_problems(self, n):
        return self.train_batch(n, 0)


STARTS = Starts(Words().train_batch(4, 0), torch.arange(4))
LONG = LanguageSampling(max_new_tokens=20, temperature=2.0)  # sentences enough
MANY = Starts(Words().train_batch(4, 0) * 6, torch.arange(24))


def tiny(tmp_path):
    torch.manual_seed(0)
    policy = TinyLM(Words(), width=WIDTH, layers=1, heads=2)
    with torch.no_grad():  # sharper than at initialisation, so that mistakes show
        policy.module["model"].embed.weight.mul_(10)
    return policy


def tied(tmp_path):
    tokenizer = build_tokenizer(["ab."])
    sizes = {"hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        Qwen2Config(vocab_size=len(tokenizer), num_key_value_heads=2, tie_word_embeddings=True, **sizes)
    )
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(20)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    policy = CausalLM(Words(), model=str(tmp_path))
    assert policy.network.get_output_embeddings().weight is policy.network.get_input_embeddings().weight
    return policy


@pytest.fixture(params=[tiny, tied])
def policy(request, tmp_path):
    return request.param(tmp_path)


@pytest.fixture
def model(policy):
    """Under a controller that does something."""
    torch.manual_seed(1)
    controller = DimensionController(2, WIDTH, rank=3)
    with torch.no_grad():
        controller.up.normal_()
    return ControlledLM(policy, controller)


@pytest.fixture
def brief(model):
    """The same, with so many tokens that end a sentence that sentences are short."""
    assert [model.policy.tokenizer.decode([i]) for i in model.ends] == ["."]
    model.ends = tuple(range(4, 12))
    return model


def states_of(rows=5):
    return torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(2))


# Controllers ------------------------------------------------------------------------------------------------


def test_a_control_of_nothing_and_an_untrained_controller_leave_logits_identical(model):
    project, states = model.policy.model.project, states_of()
    plain = project(states)
    assert torch.equal(project(model.controller(states, torch.zeros(5, 2))), plain)
    assert torch.equal(project(DimensionController(2, WIDTH)(states, torch.ones(5, 2))), plain)
    assert not torch.allclose(project(model.controller(states, torch.ones(5, 2))), plain)


def test_logits_are_those_of_the_formula_and_linear_in_the_control(model):
    project, states, controller = model.policy.model.project, states_of(), model.controller
    embeddings = project(torch.eye(WIDTH)).T  # (V,D): what a unit state says of every token
    maps = torch.einsum("kdr,kre->kde", controller.down, controller.up)
    for control in MIXED:
        whole = torch.eye(WIDTH) + torch.einsum("k,kde->de", control, maps)
        wanted = torch.einsum("md,de,ve->mv", states, whole, embeddings)
        seen = project(controller(states, control.expand(5, 2)))
        assert torch.allclose(seen, wanted, rtol=1e-4, atol=1e-3)
    one, other = (project(controller(states, MIXED[i].expand(5, 2))) for i in (0, 3))
    halfway = project(controller(states, (MIXED[0] + MIXED[3]).expand(5, 2) / 2))
    assert torch.allclose(halfway, (one + other) / 2, rtol=1e-4, atol=1e-3)


def test_controls_are_bounded():
    controller = DimensionController(2, WIDTH, limit=0.5)
    torch.nn.init.normal_(controller.up)
    states, far = states_of(), torch.tensor([[7.0, -7.0]]).expand(5, 2)
    assert torch.equal(controller(states, far), controller(states, far / 14))


@pytest.mark.parametrize("options", [{"dimensions": 0}, {"rank": 0}, {"limit": 0.0}])
def test_impossible_controllers_are_refused(options):
    with pytest.raises(ValueError, match="wanted 1 or more"):
        DimensionController(**{"dimensions": 2, "width": WIDTH} | options)


# Writing ----------------------------------------------------------------------------------------------------


def test_without_control_it_writes_what_the_policy_writes(model):
    with torch.no_grad():
        plain = model.policy.sample(STARTS, SAMPLING, seed=3)
    free = model.sample(STARTS, SAMPLING, seed=3, control=torch.zeros(4, 2))
    assert free.text == plain.text
    assert torch.allclose(free.old_logp, plain.old_logp)
    assert model.sample(STARTS, SAMPLING, seed=3, control=MIXED).text != plain.text


def plans(sentences=3):
    torch.manual_seed(5)
    return {
        "text": {"control": MIXED},
        "sentence": {"control": torch.rand(4, sentences, 2) * 2 - 1},
        "planner": {"control": MIXED, "planner": SentenceController(2, WIDTH)},
    }


@pytest.mark.parametrize("kind", plans())
def test_what_is_known_of_its_texts_is_what_it_says_of_them(model, kind):
    """Rows end at different lengths, so the batch shrinks and is reordered on the way."""
    given = {k: v.repeat(6, *[1] * (v.ndim - 1)) if k == "control" else v for k, v in plans()[kind].items()}
    rollouts = model.sample(MANY, LONG, seed=4, **given)
    assert len(set(rollouts.mask.sum(dim=1).tolist())) > 1
    assert rollouts.external is None
    with torch.no_grad():
        seen = model.evaluate(rollouts)
    assert torch.allclose(seen.logp, rollouts.old_logp, atol=1e-4)
    assert torch.allclose(seen.entropy, rollouts.entropy, atol=1e-4)
    with torch.no_grad():
        other = model.evaluate(rollouts, torch.zeros(24, 2))
        plain = model.policy.evaluate(rollouts)
    assert torch.allclose(other.logp, plain.logp, atol=1e-5)
    assert not torch.allclose(seen.logp, plain.logp, atol=1e-2)


def test_controls_come_from_the_problems_by_default(model):
    problems = with_controls(STARTS.problems, 2, seed=8)
    asked = torch.tensor([p.metadata["control"] for p in problems])
    by_default = model.sample(Starts(problems, torch.arange(4)), SAMPLING, seed=3)
    assert by_default.text == model.sample(STARTS, SAMPLING, seed=3, control=asked).text
    with pytest.raises(ValueError, match="nothing under 'control'"):
        model.sample(STARTS, SAMPLING, seed=3)


def test_each_sentence_has_the_control_of_its_place(brief):
    plan = plans()["sentence"]["control"].repeat(6, 1, 1)
    rollouts = brief.sample(MANY, LONG, seed=6, control=plan)
    several = 0
    for row in range(24):
        sentence = 0
        for t, token in enumerate(rollouts.tokens[row][rollouts.mask[row]].tolist()):
            assert torch.equal(rollouts.payload["control"][row, t], plan[row, min(sentence, 2)])
            sentence += token in brief.ends
        several += sentence > 1
    assert several > 3


def test_a_switch_changes_nothing_before_it(brief):
    starts = Starts([STARTS.problems[0]] * 40, torch.arange(40))
    steady = torch.tensor([[1.0, 0.0]]).expand(40, 2)
    switched = torch.stack([steady, -steady], dim=1)
    before, after = (brief.sample(starts, LONG, seed=7, control=c) for c in (steady, switched))
    first = [
        [row[(sentence == 0) & keep].tolist() for row, sentence, keep in zip(x.tokens, number, x.mask, strict=True)]
        for x in (before, after)
        for number in [sentence_numbers(x.tokens, brief.ends)]
    ]
    assert first[0] == first[1]
    assert sum(a != b for a, b in zip(before.text, after.text, strict=True)) > 10


def test_a_planner_gets_what_it_was_trained_on(brief):
    """Embeddings of what is being written are those that ``features`` give of the finished text."""
    planner, first = plans()["planner"]["planner"], MIXED.repeat(6, 1)
    rollouts = brief.sample(MANY, LONG, seed=6, control=first, planner=planner)
    sentence, mask = sentence_numbers(rollouts.tokens, brief.ends), rollouts.mask
    embeddings, present = sentence_embeddings(brief.policy.features(rollouts), sentence, mask)
    used, _ = sentence_embeddings(rollouts.payload["control"], sentence, mask)
    assert present[:, 2].sum() > 3
    assert torch.allclose(used[:, 0], first, atol=1e-6)
    with torch.no_grad():
        wanted = planner(embeddings, used)[:, :-1]
    later = present[:, 1:]
    assert torch.allclose(used[:, 1:][later], wanted[later], atol=1e-4)
    assert used[:, 1:][later].std() > 0.01


def test_only_the_controller_learns_and_the_reading_side_never_sees_it(model):
    policy = model.policy
    policy.module.requires_grad_(False)
    rollouts = model.sample(STARTS, SAMPLING, seed=3, control=MIXED)
    before = policy.states(rollouts)
    model.evaluate(rollouts).logp.sum().backward()
    assert all(p.grad is None for p in policy.module.parameters())
    gradients = [p.grad for p in model.controller.parameters()]
    assert all(torch.isfinite(g).all() and g.abs().max() > 0 for g in gradients)
    with torch.no_grad():
        model.controller.up.mul_(3)
    assert torch.equal(policy.states(rollouts), before)


def test_steering_in_the_engine_is_a_part_of_the_policy(policy):
    """Log-probabilities before filters and processors are those of the steered states."""
    prompt = policy.encode_prompt("ab")
    policy.module.eval()

    def doubled(states, written):
        assert written.tokens.shape == (2, written.tokens.shape[1])
        return 2 * states

    settings = GenerationOptions(max_new_tokens=1, temperature=0.5, top_k=1, steer=doubled)
    out = generate(policy.model, [prompt] * 2, settings, pad=policy.pad, seed=0)
    halved = GenerationOptions(max_new_tokens=1, temperature=0.25, top_k=1)
    wanted = generate(policy.model, [prompt] * 2, halved, pad=policy.pad, seed=0)
    assert torch.equal(out.tokens, wanted.tokens)
    assert torch.allclose(out.logp, wanted.logp, atol=1e-5)


# Sentences --------------------------------------------------------------------------------------------------


def test_sentences_of_a_text():
    tokens = torch.tensor([[5, 9, 6, 6, 8, 4], [9, 9, 5, 5, 5, 5]])
    assert sentence_numbers(tokens, (8, 9)).tolist() == [[0, 0, 1, 1, 1, 2], [0, 1, 2, 2, 2, 2]]


def test_embeddings_are_means_over_the_tokens_of_a_sentence():
    features = torch.arange(12.0).reshape(2, 3, 2)
    mask = torch.tensor([[True, True, True], [True, True, False]])
    embeddings, present = sentence_embeddings(features, torch.tensor([[0, 0, 1], [0, 0, 1]]), mask)
    assert present.tolist() == [[True, True], [True, False]]
    assert embeddings.tolist() == [[[1.0, 2.0], [4.0, 5.0]], [[7.0, 8.0], [0.0, 0.0]]]


def test_the_loss_of_a_planner_is_the_error_of_the_next_control():
    planner = SentenceController(1, 2, limit=0.5)
    with torch.no_grad():
        planner.out.weight.zero_()
        planner.out.bias.fill_(math.atanh(0.4))  # it expects 0.2, whatever it has read
    control = torch.tensor([[[9.0], [0.1], [0.3]], [[9.0], [-3.0], [9.0]]])
    present = torch.tensor([[True, True, True], [True, True, False]])
    loss = planner.loss(torch.randn(2, 3, 2), control, present)
    assert loss.item() == pytest.approx((0.1**2 + 0.1**2 + 0.7**2) / 3, abs=1e-6)


def test_a_planner_reads_embedding_control_and_past():
    torch.manual_seed(0)
    planner, embeddings = SentenceController(2, 3), torch.randn(1, 3, 3)
    control = torch.rand(1, 3, 2)
    plain = planner(embeddings, control)
    assert plain.abs().max() <= 1
    for t in range(3):
        for which in (0, 1):
            changed = [embeddings.clone(), control.clone()]
            changed[which][0, t] += 1
            moved = (planner(*changed) - plain).abs().amax(dim=2)[0] > 1e-6
            assert moved.tolist() == [False] * t + [True] * (3 - t)


def test_controls_are_drawn_per_problem_and_kept_within_the_limit():
    problems = [Problem(i, metadata={"kept": i}) for i in range(500)]
    drawn = with_controls(problems, 3, seed=1, limit=0.5)
    vectors = torch.tensor([p.metadata["control"] for p in drawn])
    assert [p.metadata["kept"] for p in drawn] == list(range(500))
    assert vectors.shape == (500, 3)
    assert vectors.abs().max() <= 0.5
    assert vectors.mean(dim=0).abs().max() < 0.05
    assert vectors.std(dim=0) == pytest.approx(torch.full((3,), 1 / math.sqrt(12)), abs=0.02)
    assert with_controls(problems, 3, seed=1, limit=0.5) == drawn != with_controls(problems, 3, seed=2, limit=0.5)
