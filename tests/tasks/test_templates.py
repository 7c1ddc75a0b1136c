import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.errors import RecipeError, RewardError
from guerdon.monitor.progress import Progress
from guerdon.rewards.template_format import template_format
from guerdon.tasks.templates import PHRASE, TEMPLATES, PromptAugmentation, Template, draw_templates
from guerdon.training.folder import RunFolder
from guerdon.training.loop import train

BY_NAME = {template.name: template for template in TEMPLATES}
SPELLING = {"name": "reasoning_gym", "dataset": "spell_backward", "config": {"min_word_len": 3, "max_word_len": 4}}


def test_the_pool_has_the_styles_of_the_source():
    assert len(TEMPLATES) == len(BY_NAME) == 13
    assert sum(len(t.marks) == 4 for t in TEMPLATES) == 3
    assert sum(bool(t.opened) for t in TEMPLATES) == sum(len(t.marks) == 3 for t in TEMPLATES) == 3
    assert sum(t.marks == (PHRASE,) for t in TEMPLATES) == 2
    for template in TEMPLATES:
        assert "2 + 2?" in template.render("2 + 2?")
        assert template.render("x").endswith(template.opened)
        assert template.format_reward(template.demonstrate("4")) == 1.0
        assert template.extract(template.demonstrate("4")) == "4"


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("think", "<think>a</think><answer>4</answer>", 1.0),
        ("think", "4", 0.0),
        ("think", "<think>a", 0.25),
        ("think", "<think>a</think><think><answer>4</answer>", 0.75),
        ("think_opened", "a</think><answer>4</answer>", 1.0),
        ("think_opened", "a</think><answer>4", 2 / 3),
        ("think_opened", "<think>a</think><answer>4</answer>", 1.0),
        ("steps", "anything", 1.0),
        ("harness_ending", f"{PHRASE} 4", 1.0),
        ("harness_ending", f"{PHRASE} 4. {PHRASE} 5", 0.0),
        ("harness_ending", "4", 0.0),
    ],
)
def test_form(name, text, wanted):
    template = BY_NAME[name]
    assert template.format_reward(text) == pytest.approx(wanted)
    assert template_format(text, {"template_marks": list(template.marks)}) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("where", "marks", "opened", "text", "wanted"),
    [
        ("whole", (), "", " 4 ", "4"),
        ("last_line", (), "", "so\n4\n", "4"),
        ("boxed", (), "", r"\boxed{1} then \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        ("boxed", (), "", r"\boxed{1", ""),
        ("boxed", (), "", "1", ""),
        ("tag", (), "<answer>", "4</answer>", "4"),
        ("tag", (), "", "4</answer>", ""),
        ("phrase", ("so:",), "", "so: 3 so: 4", "4"),
        ("phrase", ("so:",), "", "4", ""),
    ],
)
def test_where_the_answer_stands(where, marks, opened, text, wanted):
    assert Template("t", "{question}", marks, opened, where).extract(text) == wanted


@settings(deadline=None, max_examples=25)
@given(st.text("<>/answerthink", max_size=40), st.sampled_from(TEMPLATES))
def test_form_lies_between_nothing_and_all_and_a_doubled_text_earns_nothing(text, template):
    once = template.format_reward(text)
    assert 0 <= once <= 1
    if template.marks:
        assert template.format_reward(text + "\n" + text) <= 1 - once


def test_templates_are_drawn_evenly_and_by_the_seed_alone():
    drawn = draw_templates(TEMPLATES, 6500, 3)
    counts = [drawn.count(template) for template in TEMPLATES]
    assert all(400 < count < 600 for count in counts)
    assert drawn == draw_templates(TEMPLATES, 6500, 3) != draw_templates(TEMPLATES, 6500, 4)


def test_a_task_in_templates():
    task = PromptAugmentation(task=SPELLING, evaluate_with="think_opened")
    problems = task.train_batch(30, 7)
    assert problems == task.train_batch(30, 7)
    assert [p.task_id for p in problems] == [p.task_id for p in task.inner.train_batch(30, 7)]
    assert len({p.metadata["template"] for p in problems}) > 6
    for problem in problems:
        template = BY_NAME[problem.metadata["template"]]
        right = template.demonstrate(problem.answer)
        assert problem.demonstration == (right,)
        assert task.scorer(text=right, metadata=problem.metadata) == 1.0
        assert task.scorer(text=template.demonstrate("zzz"), metadata=problem.metadata) == 0.0
    assert {p.metadata["template"] for p in task.eval_problems(8)} == {"think_opened"}
    assert any("<think>" in text for text in task.corpus())
    task.load_state_dict(task.state_dict())


def test_what_is_refused():
    with pytest.raises(RecipeError, match="no template 'thnk'; did you mean 'think'"):
        PromptAugmentation(task=SPELLING, templates=["thnk"])
    with pytest.raises(RecipeError, match="different names"):
        PromptAugmentation(task=SPELLING, templates=["think", "think"])
    with pytest.raises(RecipeError, match="evaluate_with is 'x'"):
        PromptAugmentation(task=SPELLING, evaluate_with="x")
    with pytest.raises(RecipeError, match="has no field 'txt'"):
        PromptAugmentation(task=SPELLING, templates=[{"name": "a", "txt": "b"}])
    with pytest.raises(RecipeError, match="lacks the place"):
        PromptAugmentation(task=SPELLING, templates=[{"name": "a", "text": "b"}])
    with pytest.raises(RecipeError, match="give the phrase"):
        Template("a", "{question}", answer="phrase")
    with pytest.raises(RecipeError, match="answer is 'boxd'"):
        Template("a", "{question}", answer="boxd")
    with pytest.raises(RecipeError, match="use a task such as"):
        PromptAugmentation(task="gridtext")
    with pytest.raises(RewardError, match="prompt_augmentation"):
        template_format("a", {})


def test_a_recipe_trains_with_it(tmp_path):
    own = [{"name": "plain", "text": "{question}="}, {"name": "dots", "text": "{question}:", "marks": ["."]}]
    own[1]["answer"] = "phrase"
    recipe = {
        "name": "templates",
        "runs_dir": str(tmp_path),
        "task": {"name": "prompt_augmentation", "task": SPELLING, "templates": own},
        "policy": {"name": "tiny_lm", "width": 16, "layers": 1, "heads": 2},
        "warm_start": {"steps": 3, "batch": 8},
        "sampling": {"prompts": 8, "group_size": 4, "max_new_tokens": 6},
        "rewards": ["task", "template_format"],
        "training": {"steps": 2},
        "evaluation": {"problems": 8},
        "logging": {"rollouts_every": 0},
    }
    metrics = RunFolder.open(train(recipe, progress=Progress(quiet=True)).run).metrics()
    assert 0 < metrics["reward/template_format/mean"][0] < 1
