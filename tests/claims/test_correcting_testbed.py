import pytest
import torch

from guerdon.claims.testbeds.correcting import Correcting
from guerdon.credit.turn_rloo import turn_rloo
from guerdon.seeding import torch_generator
from guerdon.shaping.progress_bonus import progress_bonus


def test_exact_shares_are_those_of_draws():
    bed = Correcting(kinds=2, answers=4)
    generator = torch.Generator().manual_seed(1)
    tables = [torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in bed.start(1)]
    batch = bed._draw(tables, [torch_generator(3, "draws")], problems=8000, group_size=5)
    one, two = batch["turn_reward"].unbind(dim=1)
    seen = bed.look(tables)
    drawn = (
        one.mean(),
        two.mean(),
        two[one == 0].mean(),
        1 - two[one == 1].mean(),
        batch["mask"][:, 2].double().mean(),
    )
    for exact, share in zip(seen, drawn, strict=True):
        assert exact.item() == pytest.approx(share.item(), abs=0.02)
    assert seen.gain.item() == pytest.approx((seen.second - seen.first).item())
    logp = bed._logp(tables, batch)
    assert logp.shape == batch["mask"].shape
    assert (logp <= 0).all()


def test_training_is_the_same_for_a_seed_whoever_is_beside_it():
    bed, plain = Correcting(kinds=2, answers=4), {"name": progress_bonus, "alpha": 0.0}
    options = {"steps": 3, "shaping": plain, "credit": turn_rloo, "problems": 4, "group_size": 4}
    both, one = bed.train(seeds=2, **options), bed.train(seeds=1, first_seed=1, **options)
    torch.testing.assert_close(both[-1].first[1], one[-1].first[0])
    assert both[-1].first[0] != both[-1].first[1]
