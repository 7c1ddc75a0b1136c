import torch

from guerdon.seeding import derive, numpy_generator, torch_generator


def test_seeds_depend_on_every_part_of_the_path_and_nothing_else():
    assert derive(0, 1, "sample") == derive(0, 1, "sample")
    paths = [(0, 1, "sample"), (1, 1, "sample"), (0, 2, "sample"), (0, 1, "order"), (0, 1)]
    seeds = {derive(*path) for path in paths}
    assert len(seeds) == 5
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_generators_repeat():
    first, second = (torch.rand(3, generator=torch_generator(1, "a")) for _ in range(2))
    assert torch.equal(first, second)
    assert numpy_generator(1, "a").random() == numpy_generator(1, "a").random()
