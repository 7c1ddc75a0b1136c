import pytest
from report_runs import Page, run

from guerdon.monitor import views
from guerdon.monitor.compare import LINES, SEEDS, Comparison, common_name, flat, spread
from guerdon.training.folder import RunFolder


def made(path, metrics, *, seed=0, credit="grpo", lr=0.1, after=None, extra="") -> RunFolder:
    recipe = f"name: {path.name}\nseed: {seed}\ncredit: {{name: {credit}}}\noptimizer: {{lr: {lr}}}\n{extra}"
    folder = RunFolder.create(path, recipe)
    for step in range(max(map(len, metrics.values()))):
        folder.log(step, {name: ys[step] for name, ys in metrics.items() if step < len(ys)})
    folder.flush()
    if after is not None:
        folder.write_summary({"status": "finished", "steps": 2, "eval": {"before": {"greedy": 0.0}, "after": after}})
    return folder


def titles(panels) -> list[str]:
    return [panel.title for panel in panels]


def test_runs_that_differ_by_their_seed_are_one_line_with_a_band(tmp_path):
    folders = [made(tmp_path / f"a-{k}", {"reward/mean": [k / 10, k / 5]}, seed=k) for k in range(3)]
    folders.append(made(tmp_path / "b-0", {"reward/mean": [0.5, 0.75]}, credit="rloo"))
    comparison = Comparison(folders)
    assert [(c.name, len(c.members), c.seeds) for c in comparison.conditions] == [("a", 3, "0, 1, 2"), ("b-0", 1, "0")]
    (panel,) = comparison.main
    a, b = panel.series
    assert list(a.y) == pytest.approx([0.1, 0.2])
    assert [end for band in a.band for end in band] == pytest.approx([0.0, 0.2, 0.0, 0.4])
    assert (list(b.y), list(b.band)) == ([0.5, 0.75], [(0.5, 0.5), (0.75, 0.75)])
    assert (a.style, b.style) == ("c0 d0", "c1 d0")
    assert comparison.differing == {"credit.name": ["grpo", "rloo"]}
    assert comparison.note == (
        "Lines are means over seeds, where all of them have a value; bands: from the lowest to the highest seed."
    )


def test_from_five_seeds_on_the_band_is_a_standard_error(tmp_path):
    assert spread([0.5, 0.0, 1.0, 0.25]) == (0.0, 1.0)
    assert spread([0.0, 1.0, 2.0, 3.0, 4.0]) == pytest.approx((2 - 0.5**0.5, 2 + 0.5**0.5))  # std 1.58 / sqrt(5)
    five = [made(tmp_path / f"a-{k}", {"reward/mean": [0.1 * k]}, seed=k) for k in range(SEEDS)]
    assert Comparison(five).note.endswith("bands: ± one standard error over the seeds.")
    two = [made(tmp_path / f"b-{k}", {"reward/mean": [0.1]}, seed=k, lr=1.0) for k in range(2)]
    assert Comparison(five + two).note.endswith(
        "bands: from the lowest to the highest seed, or ± one standard error over the seeds, from 5 seeds on."
    )
    assert Comparison([*five[:1], *two[:1]]).note == ""


def test_a_line_goes_where_all_seeds_have_a_value(tmp_path):
    folders = [made(tmp_path / "a-0", {"x": [1.0, 2.0, 3.0]}), made(tmp_path / "a-1", {"x": [3.0, 4.0]}, seed=1)]
    (condition,) = Comparison(folders).conditions
    line = condition.line("x")
    assert (list(line.x), list(line.y)) == ([0, 1], [2.0, 3.0])
    assert condition.line("y") is None


def test_metrics_that_all_share_come_first(tmp_path):
    one = made(
        tmp_path / "a", {"reward/mean": [0.0, 1.0], "update/loss": [1.0, 0.5], "odd": [1.0, 2.0], "mine": [0.0, 1.0]}
    )
    two = made(tmp_path / "b", {"reward/mean": [0.5, 1.0], "update/loss": [1.0, 0.5], "odd": [3.0, 2.0]}, lr=1.0)
    comparison = Comparison([one, two])
    assert titles(comparison.main) == ["reward/mean", "update/loss"]
    assert titles(comparison.further) == ["odd"]
    assert titles(comparison.others) == ["mine"]


def test_telling_metrics_come_in_the_order_of_asking(tmp_path):
    names = "update/grad_norm update/kl/kl entropy/mean reward/a/mean watch/gold/mean reward/mean reward/std".split()
    folders = [made(tmp_path / n, {m: [0.0, 1.0] for m in names}, lr=k) for k, n in enumerate("ab")]
    assert titles(Comparison(folders).main) == [
        "reward/mean",
        "watch/gold/mean",
        "reward/a/mean",
        "entropy/mean",
        "update/kl/kl",
        "update/grad_norm",
    ]


def test_held_out_results_are_means_with_their_range(tmp_path):
    folders = [made(tmp_path / f"a-{k}", {"x": [1.0]}, seed=k, after={"greedy": 0.4 + 0.2 * k}) for k in range(2)]
    comparison = Comparison(folders)
    assert comparison.metrics == ["eval/greedy"]
    mean, ends, count = comparison.conditions[0].final("eval/greedy")
    assert (mean, ends, count) == (pytest.approx(0.5), (0.4, pytest.approx(0.6)), 2)
    (panel,) = comparison.main
    assert (panel.title, list(panel.series[0].x)) == ("held-out greedy", [0, 2])
    page = Page(views.comparison(folders))
    assert "a 0, 1 2 0.500 0.400 to 0.600" in page.text
    assert "Settings that differ" not in page.text
    assert (
        "a 0, 1 2 0.400 Last"
        in Page(
            views.comparison([folders[0], made(tmp_path / "a-9", {"x": [1.0]}, seed=1, after={"greedy": 0.4})])
        ).text
    )


def test_fifty_runs_of_as_many_conditions(tmp_path):
    folders = [made(tmp_path / f"r{k}", {"reward/mean": [0.0, k / 50]}, lr=k / 10) for k in range(50)]
    comparison = Comparison(folders)
    assert len({line.style for line in comparison.main[0].series}) == LINES
    page = Page(views.comparison(folders))
    assert f"The first {LINES} of 50 are drawn" in page.text
    assert len(page.html) < 300_000
    assert "r49 4.9" in page.text


def test_settings_are_a_row_each_where_there_are_more_of_them_than_runs(tmp_path):
    folders = [
        made(tmp_path / "a", {"x": [0.0]}),
        made(tmp_path / "b", {"x": [0.0]}, credit="rloo", lr=1, extra="more: 1\n"),
    ]
    assert "setting a b credit.name grpo rloo optimizer.lr 0.1 1 more – 1" in Page(views.comparison(folders)).text
    folders[1] = made(tmp_path / "c", {"x": [0.0]}, lr=1)
    assert "runs optimizer.lr a 0.1 c 1" in Page(views.comparison(folders)).text


def test_what_a_part_brings_with_it_is_told_by_the_part_alone(tmp_path):
    more = "rewards:\n- {name: task, weight: %s}\n- {name: length, floor: 0.0}\n"
    folders = [
        made(tmp_path / "a", {"x": [0.0]}, extra="rewards:\n- {name: task, weight: 1.0}\n"),
        made(tmp_path / "b", {"x": [0.0]}, extra=more % 1.0),
        made(tmp_path / "c", {"x": [0.0]}, extra=more % 2.0),
    ]
    assert Comparison(folders).differing == {
        "rewards": ["task", "task, length", "task, length"],
        "rewards.task.weight": ["1.0", "1.0", "2.0"],
    }


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["one-0"], "one-0"),
        (["one-0", "one-1", "one-12"], "one"),
        (["lr0.1-10", "lr0.1-11"], "lr0.1"),
        (["cart-seed0", "cart-seed1"], "cart"),
        (["gridtext-a-0", "g-a-0"], "gridtext-a-0 and 1 more"),
        (["same", "same"], "same"),
    ],
)
def test_the_name_of_several_runs(names, expected):
    assert common_name(names) == expected


def test_conditions_never_share_a_name(tmp_path):
    folders = [made(tmp_path / f"{lr}" / "run", {"x": [0.0]}, lr=lr) for lr in (1, 2)]
    assert [c.name for c in Comparison(folders).conditions] == ["run", "run (2)"]


def test_recipes_become_settings_by_path():
    recipe = {"rewards": [{"name": "a", "weight": 1.0}, {"name": "a", "label": "b"}], "x": {"y": [1, 2], "z": {}}}
    assert flat(recipe) == {
        "rewards": "a, b",
        "rewards.a.weight": "1.0",
        "rewards.b.label": "b",
        "x.y": "[1, 2]",
        "x.z": "{}",
    }


def test_names_and_settings_stay_text(tmp_path):
    folders = [
        made(tmp_path / "<script>a", {"<script>": [0.0, 1.0]}, credit="'<script>'"),
        run(tmp_path / "b", steps=2),
    ]
    page = Page(views.comparison(folders))
    assert not page.all("script")
    assert page.data.count("<script>") >= 4
