"""Where nobody ever solves a problem there is no gradient. A teacher that never sees these problems makes up others,
and is paid for how much better a student does on the real ones after a short training on its own.

A student has three skills that build on one another, each used rightly one time in ten at first; hard questions use the
first one, two or three of them eight times each, so that RL on them has nothing to begin with. The teacher chooses
among 38 templates: six practise the chain, sixteen another skill that no hard question uses, and sixteen ask for the
toss of a coin. It makes four data sets of 64 a step, for 120 steps; trainings are ten steps of RLOO in batches of
eight, exams 64 hard questions with equal random numbers for both students.

A student's rate of 15 was found on seeds 100 to 105; at 10 or lower ones ten steps teach too little to be seen in 64
questions, and nothing begins within 60 steps. With few templates, hardly any off-topic, a teacher that never learns
does as well, for promotion alone carries the student on; it takes many useless templates for the teacher to matter.
Paid for success rates near one half, the teacher turns to coins; of its rates 10 and 30 the better one, 10, is
compared, in the same classroom with the same promotions. Exams are drawn by chance and not answered greedily, which
with these students would be all or nothing. It is luck when the first useful data set is drawn, hence six seeds of ten
are asked for, which is what "most" says.

The teacher's rate was changed twice after a look at the default seeds. 400 was taken from six seeds: on seeds 0 to 9
half of the teachers settled on templates by chance, and the mean accuracy over training was 0.51 against 0.44
(learnability) and 0.56 (an even teacher). 200 was taken from sixteen seeds, 100 to 115: on seeds 0 to 15 it was 0.69
against 0.46 and 0.58, and all checks held but the use of the chain's templates, which doubled on 9 seeds only. Of 100,
200 and 300, tried on seeds 100 to 115, the last has the highest accuracy (0.58, 0.66, 0.72, against 0.49 and 0.49 of
the others) and doubles that use on 14; it is taken here. A rate too high settles on chance, as the reward is noisy.

With it, hard questions are solved, the teacher turns to what can be learned next, and payment for learnability is
slower on most seeds. What is not shown is that the teacher's learning is needed: on the default seeds an even teacher,
with the same promotions, comes to 0.58 where SOAR comes to 0.63, and the interval of the gain holds 0. That check is
left in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from guerdon.claims.core import Check, Claim, Mutation, check, equal, every_seed, paired
from guerdon.credit.grouping import leave_one_out_mean
from guerdon.curriculum.teacher import Classroom, Lesson, Pairs, TemplateTeacher, soar
from guerdon.seeding import derive

SKILLS, HARD = 3, 8  # skills in a chain, and how often a hard question uses each that it needs
ELSEWHERE = SKILLS  # a skill that no hard question uses
COIN = -1  # the skill of questions whose answer nobody can know
TEMPLATES = [(skill, size) for skill in range(SKILLS) for size in (1, 2)] + 16 * [(ELSEWHERE, 1), (COIN, 1)]
BATCH, ROLLOUTS, INNER = 8, 4, 10
STEPS, DATASETS, RATE = 120, 4, 15.0

Question = tuple[int, int]
Soar = Callable[..., Classroom[Any, Any]]
Student = np.ndarray  # (SKILLS + 1,) logits of using a skill rightly


def mastery(student: Student) -> np.ndarray:
    """(SKILLS + 1,) probability of using each skill rightly."""
    return 1 / (1 + np.exp(-student))


def uses(questions: Sequence[Question]) -> np.ndarray:
    """(Q,SKILLS + 1) how often each question uses each skill: its own and, in the chain, those before it."""
    skill, size = np.array(questions).T[:, :, None]
    each = np.arange(SKILLS + 1)
    return np.where(np.where(skill == ELSEWHERE, each == ELSEWHERE, each <= skill), size, 0)


def practise(student: Student, questions: Sequence[Question], rng: np.random.Generator, lr: float) -> None:
    """One step of RLOO on a batch of questions; right is who uses all skills rightly, or guesses a coin."""
    m, n = mastery(student), uses(questions)[:, None].repeat(ROLLOUTS, axis=1)
    went_well = rng.binomial(n, m)
    right = (went_well == n).all(axis=2)
    right &= (np.array(questions)[:, :1] >= 0) | (rng.random(right.shape) < 0.5)
    advantage = (right - right.mean(axis=1, keepdims=True)) * ROLLOUTS / (ROLLOUTS - 1)
    student += lr * (advantage[..., None] * (went_well - n * m)).mean(axis=(0, 1))


def train(student: Student, data: Pairs[Question], seed: int, *, lr: float) -> Student:
    """Ten steps in batches of eight."""
    rng = np.random.default_rng(seed)
    order = np.concatenate([rng.permutation(len(data.items)) for _ in range(INNER * BATCH // len(data.items) + 1)])
    for step in range(INNER):
        practise(student, [data.items[i] for i in order[step * BATCH : (step + 1) * BATCH]], rng, lr)
    return student


def hard_questions(n: int, rng: np.random.Generator) -> list[Question]:
    """Questions that use the first one, two or three skills four times each."""
    return [(int(skill), HARD) for skill in rng.integers(SKILLS, size=n)]


def accuracy(student: Student, seed: int) -> float:
    """Share of 64 hard questions that a student gets right, by given random numbers."""
    rng = np.random.default_rng(seed)
    needed = uses(hard_questions(64, rng))
    luck = rng.random((64, SKILLS + 1, HARD))
    return float(((luck < mastery(student)[:, None]) | (np.arange(HARD) >= needed[..., None])).all(axis=(1, 2)).mean())


def exact_accuracy(student: Student) -> float:
    """The expectation of ``accuracy``."""
    return float((mastery(student)[:SKILLS] ** HARD).cumprod().mean())


def beginner() -> Student:
    """Who uses each skill of the chain rightly one time in ten, and the other one three times."""
    return np.log(np.array([0.1, 0.1, 0.1, 0.3]) / np.array([0.9, 0.9, 0.9, 0.7]))


class Seen(NamedTuple):
    """Accuracy of the baseline student (steps,), use of templates (steps,J), the last student and what was promoted."""

    accuracy: Tensor
    used: Tensor
    student: Student
    promotions: list[Pairs[Question]]


def learned(method: Soar, seed: int) -> Seen:
    """SOAR on one seed."""
    teacher, seen = new_teacher(300.0), []

    def watch(step: int, lesson: Lesson) -> None:
        seen.append((lesson.baseline, teacher.probabilities))

    settings: dict[str, Any] = {"steps": STEPS, "datasets": DATASETS, "seed": seed, "watch": watch}
    room = method(teacher, beginner(), inner_train=partial(train, lr=RATE), evaluate=accuracy, **settings)
    right, used = zip(*seen, strict=True)
    return Seen(torch.tensor(right), torch.stack(used), room.student, room.promotions)


def otherwise(seed: int, lr: float) -> Tensor:
    """(STEPS,) accuracy where the teacher is paid for success rates near one half; with ``lr`` 0 it stays as it is."""
    teacher, room = new_teacher(lr), Classroom(beginner(), partial(train, lr=RATE), accuracy)
    seen = []
    for step in range(STEPS):
        datasets = [teacher.propose(derive(seed, step, "propose", place)) for place in range(DATASETS)]
        paid = torch.tensor([learnability(room.student, data.items) for data in datasets], dtype=torch.float64)
        seen.append(room.judge(datasets, derive(seed, step, "judge")).baseline)
        teacher.learn(datasets, paid - leave_one_out_mean(paid, None))
    return torch.tensor(seen)


def new_teacher(lr: float) -> TemplateTeacher[Question]:
    """One that uses all templates alike."""
    return TemplateTeacher([partial(lambda question, seed: question, question) for question in TEMPLATES], lr=lr)


def learnability(student: Student, questions: Sequence[Question]) -> float:
    """Mean of 1 - 2 |p - 1/2|, p the success rate of a question."""
    success = (mastery(student) ** uses(questions)).prod(axis=1)
    success = np.where(np.array(questions)[:, 0] == COIN, 0.5, success)
    return float((1 - 2 * np.abs(success - 0.5)).mean())


def graduate(seed: int, steps: int, promotions: Sequence[Pairs[Question]]) -> float:
    """Accuracy of a fresh student that practises hard questions, half of each batch promoted ones if there are any."""
    rng, student = np.random.default_rng(derive(seed, "graduate")), beginner()
    known = [question for data in promotions for question in data.items]
    for _ in range(steps):
        own = [known[i] for i in rng.integers(len(known), size=BATCH // 2)] if known else []
        practise(student, [*own, *hard_questions(BATCH - len(own), rng)], rng, RATE)
    return exact_accuracy(student)


class Scripted:
    """A teacher that always makes the same data sets, and remembers its credit."""

    def __init__(self) -> None:
        self.turn, self.credit = 0, []

    def propose(self, seed: int) -> float:
        """One of 0.25, 0.5 and 0."""
        self.turn += 1
        return (0.25, 0.5, 0.0)[(self.turn - 1) % 3]

    def learn(self, datasets: Sequence[float], advantage: Tensor) -> None:
        """Note the credit."""
        self.credit.append(advantage)


def by_hand(method: Soar) -> Iterator[Check]:
    """A classroom in which training adds a known amount."""
    teacher, lessons = Scripted(), []
    given: dict[str, Any] = {"inner_train": lambda s, data, seed: s + data, "evaluate": lambda s, seed: s}
    room = method(teacher, 0.0, steps=3, datasets=3, watch=lambda step, lesson: lessons.append(lesson), **given)
    yield equal("rewards in every step", torch.stack([x.reward for x in lessons]), torch.tensor([[0.25, 0.5, 0]] * 3))
    yield equal("credit, against the mean of the others", teacher.credit[0], [0.0, 0.375, -0.375])
    yield equal("the student, once the mean of three steps is high enough", room.student, 0.5)
    seen = [x.promoted for x in lessons]
    yield check("which data set is promoted", seen == [None, None, 1], expected="[None, None, 1]", seen=seen)


def run(method: Soar, seeds: int) -> Iterator[Check]:
    """Credit by hand; then the chain of skills."""
    yield from by_hand(method)
    ours = [learned(method, seed) for seed in range(seeds)]
    paid = torch.stack([otherwise(seed, 10.0) for seed in range(seeds)])
    even = torch.stack([otherwise(seed, 0.0) for seed in range(seeds)])
    curves = {"soar": torch.stack([x.accuracy for x in ours]), "learnability": paid, "even teacher": even}
    yield every_seed("hard questions right in the end", [exact_accuracy(x.student) for x in ours], above=0.3)
    updates = STEPS * DATASETS * INNER
    alone = [graduate(seed, updates, []) for seed in range(seeds)]
    yield every_seed(f"the same after {updates} updates on hard questions alone", alone, below=0.01)
    for name, other in (("a teacher paid for learnability", paid), ("a teacher that never learns", even)):
        yield paired(
            f"mean accuracy over training, against {name}",
            torch.stack([x.accuracy for x in ours]).mean(dim=1),
            other.mean(dim=1),
            share=0.6,
            curves=curves if other is paid else None,
            axis="hard questions right by step",
        )
    chain, later = slice(0, 2 * SKILLS), slice(2, 2 * SKILLS)
    most = [float(x.used[:, chain].sum(dim=1).max()) for x in ours]
    yield every_seed("largest use of templates of the chain, 0.16 at first", most, above=0.32, share=0.8)
    after = [float(x.used[int((x.accuracy > 0.25).int().argmax()) :, later].sum(dim=1).max()) for x in ours]
    yield every_seed(
        "the same of the second and third skill, 0.11 at first, once the first is mastered",
        after,
        above=0.16,
        share=0.8,
    )
    fresh = [graduate(seed, 1000, x.promotions) for seed, x in enumerate(ours)]
    yield every_seed("a fresh student on hard and promoted questions, after 1000 updates", fresh, above=0.3)


def never_examined(teacher: Any, student: Any, *, evaluate: Any, **options: Any) -> Classroom[Any, Any]:
    """Pay the teacher nothing, whatever its students learn."""
    return soar(teacher, student, evaluate=lambda who, seed: 0.0, **options)


CLAIM = Claim(
    system="soar-teacher",
    run=run,
    method=soar,
    mutation=Mutation("students are not examined, and the teacher is paid nothing", never_examined),
    seeds=16,
)
