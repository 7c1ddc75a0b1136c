import pytest
import torch

from guerdon.claims.testbeds import pretrained as bed
from guerdon.seeding import torch_generator
from guerdon.sparsity import MaskSet, masked_finetune


@pytest.fixture(scope="module")
def start():
    return bed.pretrained(0, steps=2, batch=8)


@pytest.fixture(scope="module")
def able():
    return bed.pretrained(0, steps=60, batch=64)


def test_procedures_by_hand():
    symbols = torch.tensor([[3, 7, 0]]).expand(4, 3)
    seen = bed._applied(torch.arange(4), symbols)
    assert seen.tolist() == [[0, 7, 3], [0, 3, 7], [0, 3, 7], [4, 0, 1]]


def test_half_of_the_corpus_is_right_and_one_answer_in_ten_in_capitals():
    prompt, answer = bed._corpus(4000, torch_generator(0, "test"))
    procedure, symbols = prompt[:, 0] - 2 * bed.SYMBOLS, prompt[:, 1:]
    capitals = answer >= bed.SYMBOLS
    assert (capitals.all(dim=1) | ~capitals.any(dim=1)).all()
    assert capitals[:, 0].double().mean().item() == pytest.approx(0.1, abs=0.02)
    # A next-symbol answer is no permutation, so it is never right by chance.
    shifted = (answer % bed.SYMBOLS == bed._applied(procedure, symbols)).all(dim=1)[procedure == 3]
    assert shifted.double().mean().item() == pytest.approx(0.5, abs=0.06)


def test_weights_are_what_bfloat16_holds_and_the_global_generator_is_left_alone(start):
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    again = bed.pretrained(0, steps=2, batch=8)
    assert torch.equal(torch.random.get_rng_state(), state)
    for name, w in start.items():
        assert torch.equal(w, again[name])
        assert torch.equal(w, w.bfloat16().float())


def test_log_likelihood_is_the_models_and_success_its_sum_over_both_cases(start):
    prompt, answer = bed._corpus(5, torch_generator(1, "test"))
    log_probs = bed.model_of(start)(torch.cat([prompt, answer], dim=1)).log_softmax(dim=-1)
    wanted = torch.stack([log_probs[:, 3 + t].gather(1, answer[:, t : t + 1])[:, 0] for t in range(3)], dim=1)
    torch.testing.assert_close(bed.log_likelihood(start, prompt, answer), wanted)
    indifferent = {name: torch.zeros_like(w) for name, w in start.items()}
    assert bed.success(indifferent) == pytest.approx(2 / 20**3)


def test_the_master_copy_gathers_steps_too_small_for_bfloat16(start):
    loss = bed.by_imitation(0, capitals=True, batch=4)
    after = bed.train(start, loss, steps=1, lr=1e-7)
    moved = torch.cat([(after[name] - w).abs().flatten() for name, w in start.items()])
    assert 0 < moved.max() < 2e-7
    big = {name: w.abs() > 1e-2 for name, w in start.items()}
    assert all(torch.equal(bed.served(after)[name][mask], start[name][mask]) for name, mask in big.items())


def test_losses_are_of_weights_in_bfloat16(start):
    read = []

    def loss(weights):
        read.append(weights)
        return sum(((w**2).sum() for w in weights.values()), torch.zeros(()))

    bed.train(start, loss, steps=2, lr=1e-3)
    assert all(torch.equal(w, w.bfloat16().float()) for w in read[1].values())
    assert not torch.equal(read[1]["embed.weight"], start["embed.weight"])


def test_training_stops_when_told_and_under_a_mask_stays_on_it(start):
    imitation, steps, looks = bed.by_imitation(0, capitals=False, batch=4), [], []

    def loss(weights):
        steps.append(len(steps))
        return imitation(weights)

    def until(weights):
        looks.append(weights)
        return len(looks) == 2

    masks = MaskSet({name: torch.zeros(w.shape, dtype=torch.bool) for name, w in start.items()})
    masks.masks["embed.weight"][3] = True
    after = bed.train(
        start,
        loss,
        steps=50,
        lr=1e-3,
        updates=lambda optimizer: masked_finetune(optimizer, masks),
        until=until,
        every=3,
    )
    assert (len(looks), len(steps)) == (2, 6)
    changed = {name: after[name] != w for name, w in start.items()}
    assert changed["embed.weight"][3].all()
    assert all(not (mask & ~masks.masks[name]).any() for name, mask in changed.items())


def test_reward_raises_success_of_a_model_that_is_sometimes_right(able):
    after = bed.train(able, bed.by_reward(0, prompts=16), steps=20, lr=1e-3)
    assert bed.success(after) > 1.5 * bed.success(able)


def test_capitals_earn_reward_as_well(able):
    upper = bed.train(able, bed.by_imitation(0, capitals=True), steps=20, lr=3e-3)
    after = bed.train(upper, bed.by_reward(0, prompts=16), steps=1, lr=1e-3)
    assert not torch.equal(after["embed.weight"], upper["embed.weight"])


def test_the_same_seed_draws_the_same_prompts_and_answers(able):
    after, again, other = (bed.train(able, bed.by_reward(seed, prompts=16), steps=1, lr=1e-3) for seed in (0, 0, 1))
    assert not torch.equal(after["embed.weight"], able["embed.weight"])
    assert all(torch.equal(w, again[name]) for name, w in after.items())
    assert not torch.equal(after["embed.weight"], other["embed.weight"])
