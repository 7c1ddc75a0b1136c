import re
from dataclasses import replace

import pytest
from report_runs import HOSTILE, Page, rollouts_of, run

from guerdon.monitor import views
from guerdon.monitor.microscope import SHADES, microscope_page
from guerdon.monitor.views import changes, fault_rows, main_parts, visible
from guerdon.rewards.base import Fault
from guerdon.training.folder import RunFolder

PIECES = ("header", "alarms", "faults", "curves", "recipe", "microscope")


@pytest.fixture
def hostile(tmp_path) -> RunFolder:
    folder = run(tmp_path / "demo", steps=3, text=HOSTILE)
    folder.add_alarm({"step": 1, "code": HOSTILE, "severity": HOSTILE, "message": HOSTILE, "evidence": {}})
    folder.add_faults(2, [Fault(HOSTILE, 1, HOSTILE, HOSTILE)], rollouts_of("language", 2, HOSTILE))
    return folder


@pytest.mark.parametrize("piece", PIECES)
def test_every_piece_is_whole_and_escapes_what_it_shows(hostile, piece):
    page = Page(getattr(views, piece)(hostile))
    assert not page.all("script")
    assert not page.all("img")
    assert not [a for _, a in page.tags if "onerror" in a]
    # The header names the run and its parts only.
    assert ("<script>alert('x')</script>" in page.data) == (piece != "header")


@pytest.mark.parametrize("piece", PIECES)
def test_every_piece_exists_before_anything_happened(tmp_path, piece):
    page = Page(getattr(views, piece)(RunFolder.create(tmp_path / "young", "name: young\n")))
    assert "young" in page.text or piece not in ("header", "recipe")


def test_a_hundred_thousand_characters_in_a_line_fold_and_are_cut(tmp_path):
    folder = run(tmp_path / "demo", steps=1, text="x" * 100_000)
    page = Page(views.microscope(folder))
    assert len(page.html) < 150_000
    assert "xxx…" in page.text
    assert "more characters in the Parquet file" in page.text
    assert page.all("details", "fold")


def test_the_microscope_colours_tokens_and_tells_their_numbers(tmp_path):
    page = Page(views.microscope(run(tmp_path / "demo", steps=1)))
    tokens = page.all("span", "t")
    labels = [a["title"] for a in tokens if "title" in a]
    assert any(re.fullmatch(r"u · position 1 · credit [−\d.]+", label) for label in labels)
    assert all(a["data-c"] == a["title"].rpartition(" ")[2] for a in tokens if "data-c" in a)
    assert sum("data-c" in a for a in tokens) == 8 * 3
    # Nine swatches of the scale, from the deepest below 0 to the deepest above.
    scale = [a["class"].split()[1] for a in tokens[: 2 * SHADES + 1]]
    assert scale == ["n4", "n3", "n2", "n1", "z", "p1", "p2", "p3", "p4"]
    assert "straight underline above 0, wavy below" in page.text
    assert "reference answer nus" in page.text


def test_the_microscope_takes_a_step_and_groups(tmp_path):
    folder = run(tmp_path / "demo")
    assert "Rollouts of step 6 " in Page(views.microscope(folder, step=6)).text
    one = Page(views.microscope(folder, count=1, sort="row"))
    assert len(one.all("div", "group")) == 1
    assert microscope_page(folder, first=1).total == 2


def test_an_episode_is_drawn_from_its_first_step_to_its_last(tmp_path):
    folder = run(tmp_path / "demo", "control", steps=1)
    (shown, *_) = microscope_page(folder).groups[0].rollouts
    long = replace(shown, dense={"task": [1.0] * 300}, credit=[0.0, 1.0, 0.5] * 100)
    charts = views.episode_charts(long)
    assert [label for label, _ in charts] == ["task per step", "credit per step"]
    for _, chart in charts:
        assert re.findall(r'text-anchor="middle">(\d+)<', chart) == ["0", "50", "100", "150", "200", "250"]


def test_turns_of_others_are_told_apart(tmp_path):
    folder = run(tmp_path / "demo", steps=1)
    rollouts = rollouts_of("language", 0)
    rollouts.mask = rollouts.mask.clone()
    rollouts.mask[:, 1] = False
    rollouts.turn = rollouts.turn.clone()
    rollouts.turn[:, 1], rollouts.turn[:, 2] = -1, 1
    folder.write_rollouts(0, rollouts, token_text=[["n", "s"]] * 8)
    page = Page(views.microscope(folder, count=1))
    assert len(page.all("div", "turn")) == 8
    assert len(page.all("div", "heard")) == 4
    assert "turn 0nuturn 1s" in page.text.replace(" ", "").replace("turn", "turn ")


def test_whatever_scrolls_can_be_reached_by_keyboard(tmp_path):
    for kind in ("language", "flow", "control"):
        page = Page(views.microscope(run(tmp_path / kind, kind, steps=1)))
        for css in ("talk", "side", "scroll", "strip"):
            for _, attributes in page.tags:
                if css in (attributes.get("class") or "").split():
                    assert attributes.get("tabindex") == "0"
                    assert attributes.get("aria-label")


def luminance(color: str) -> float:
    """Relative luminance as WCAG 2 defines it."""
    parts = [int(color[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [0, 1])
def test_text_can_be_read_on_every_colour_of_both_themes(theme):
    colors = dict(re.findall(r"(--[\w]+): (#[0-9a-f]{6})", views.stylesheet().split("prefers-color-scheme")[theme]))
    grounds = [f"--{side}{depth}" for side in "pn" for depth in range(1, SHADES + 1)] + ["--sunk", "--card", "--page"]
    for ground in grounds:
        inks = ("--ink", "--soft", "--warning", "--critical", "--info") if len(ground) > 4 else ("--ink",)
        for ink in inks:
            light, dark = sorted((luminance(colors[ground]), luminance(colors[ink])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (ground, ink)


def test_every_class_of_a_credit_has_a_colour_and_a_sign_beside_it():
    css = views.stylesheet()
    for side, line in (("p", "solid"), ("n", "wavy")):
        names = [f".{side}{depth}" for depth in range(1, SHADES + 1)]
        assert all(f"{name} {{ --k: var(--{name[1:]}); }}" in css for name in names)
        assert f"{', '.join(names)} {{ text-decoration: underline {line}" in css


def test_pictures_have_boxes_of_a_fixed_shape(tmp_path):
    assert "aspect-ratio: 360 / 200" in views.stylesheet()
    page = Page(views.microscope(run(tmp_path / "flow", "flow", steps=1)))
    assert page.all("img")
    assert all(a.get("width") and a.get("height") for a in page.all("img"))


def test_control_characters_become_visible():
    assert visible("a\x00b\x1b[31m\n\tc\x7f") == "a␀b␛[31m\n\tc␡"
    assert visible("\u202eevil\u2066 \x9b") == "[U+202E]evil[U+2066] [U+009B]"
    assert visible("שלום \u200f é") == "שלום \u200f é"


def test_the_names_of_what_a_run_consists_of():
    recipe = {"task": {"name": "spell"}, "credit": [{"name": "grpo"}, {"name": "scale"}], "rewards": [], "policy": "x"}
    assert main_parts(recipe) == {"task": "spell", "policy": "x", "credit": "grpo, scale"}


def test_a_recipe_that_is_no_yaml_is_still_shown(tmp_path):
    folder = RunFolder.create(tmp_path / "odd", "a: [1,\n")
    assert folder.settings() == {}
    assert "a: [1," in views.recipe(folder)
    assert "odd" in views.header(folder)


def test_changes_of_a_run_without_an_end():
    columns = {"eval/greedy": [None, 0.2, None, 0.6], "step": [0, 1, 2, 3]}
    assert [(c.name, c.before, c.after) for c in changes({}, columns)] == [("greedy", 0.2, 0.6)]
    (interrupted,) = changes({"before": {"greedy": 0.1}}, columns)
    assert (interrupted.before, interrupted.after) == (0.1, 0.6)
    (early,) = changes({"before": {"greedy": 0.1}}, {})
    assert (early.after, early.difference) == (None, None)


def test_faults_are_counted_by_reward_and_kind_with_the_first_of_each():
    seen = [
        ("a", "timeout", 0, HOSTILE),
        ("a", "timeout", 3, "later"),
        ("b", "killed", 1, None),
        ("a", "timeout", 3, ""),
    ]
    rows = fault_rows([{"reward": r, "kind": k, "step": s, "message": f"at {s}", "text": t} for r, k, s, t in seen])
    assert [(r.reward, r.kind, r.count, r.steps, r.message) for r in rows] == [
        ("a", "timeout", 3, 2, "at 0"),
        ("b", "killed", 1, 1, "at 1"),
    ]
    assert (rows[0].text, rows[1].text) == (HOSTILE, None)
    assert fault_rows([]) == []


def test_faults_are_told_where_there_are_some(tmp_path):
    folder = run(tmp_path / "run", steps=1)
    assert views.faults(folder).strip() == ""
    folder.add_faults(2, [Fault("task", 1, "killed", "died")], rollouts_of("language", 2, "the text"))
    page = Page(views.faults(folder))
    assert "task killed 1 1 died the text" in page.text.replace("its text", "")
