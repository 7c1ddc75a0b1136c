"""A teacher that is paid for what its problems do to a student, where the real problems are never solved."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from guerdon.credit.grouping import leave_one_out_mean
from guerdon.seeding import derive, torch_generator

Student = TypeVar("Student")
Data = TypeVar("Data")
Item = TypeVar("Item")


class Teacher(Protocol[Data]):
    """Whoever makes up problems; it never sees the real ones."""

    def propose(self, seed: int) -> Data:
        """Make a data set of problems with answers."""
        ...

    def learn(self, datasets: Sequence[Data], advantage: Tensor) -> None:
        """Take a policy-gradient step: the credit (g,) of each data set is that of all of its problems."""
        ...


class Lesson(NamedTuple):
    """What came of some data sets.

    Attributes:
        reward: (g,) accuracy of the student trained on each, minus that of the baseline student, on the same questions.
        advantage: (g,) each reward minus the mean of the others.
        baseline: accuracy of the baseline student.
        promoted: place of the data set whose student is the baseline from now on; None if it stays.
    """

    reward: Tensor
    advantage: Tensor
    baseline: float
    promoted: int | None


@dataclass
class Classroom(Generic[Student, Data]):
    """The baseline student, and what data sets are worth to it.

    R_k = mean_r Acc(student trained on X_k in run r) - Acc(student),  A_k = R_k - mean_{j != k} R_j

    Every training begins from a copy of the baseline student, and both students of a difference answer the same
    questions with the same random numbers. Once the mean reward of the last ``window`` steps exceeds ``tau``, the best
    student of the step becomes the baseline and its data set is kept. (Rewards of steps before a promotion are relative
    to another baseline, so they are forgotten then; and a student that is no better than the baseline is never
    promoted. The source says neither.)

    Attributes:
        student: the baseline; copied, never trained itself.
        inner_train: ``(student, data set, seed) -> student``, a short training with rewards for matching the data set's
            own answers.
        evaluate: ``(student, seed) -> accuracy`` on the real questions.
        tau: mean reward above which a student is promoted.
        window: steps that the mean is taken over.
        repeats: trainings per data set, whose accuracies are averaged.
        promotions: data sets kept so far, the oldest first.

    Source: Teaching Models to Teach Themselves: Reasoning at the Edge of Learnability.
    """

    student: Student
    inner_train: Callable[[Student, Data, int], Student]
    evaluate: Callable[[Student, int], float]
    tau: float = 0.01
    window: int = 3
    repeats: int = 1
    promotions: list[Data] = field(default_factory=list)
    recent: deque[float] = field(default_factory=deque)

    def __post_init__(self) -> None:
        if self.window < 1 or self.repeats < 1:
            raise ValueError(f"window is {self.window} and repeats {self.repeats}, want 1 or more of each")

    def judge(self, datasets: Sequence[Data], seed: int) -> Lesson:
        """Train on each data set, see what it was worth, and promote the best student if it is time.

        Args:
            datasets: of one step, two or more: one alone gets no credit.
            seed: of the trainings and of the questions.
        """
        questions = derive(seed, "questions")
        before = float(self.evaluate(self.student, questions))
        gains, students = [], []
        for place, data in enumerate(datasets):
            runs = [
                self.inner_train(copy.deepcopy(self.student), data, derive(seed, "inner", place, run))
                for run in range(self.repeats)
            ]
            after = [float(self.evaluate(student, questions)) for student in runs]
            gains.append(sum(after) / len(after) - before)
            students.append(runs[after.index(max(after))])
        reward = torch.tensor(gains, dtype=torch.float64)
        advantage = reward - leave_one_out_mean(reward, None)
        self.recent.append(float(reward.mean()))
        while len(self.recent) > self.window:
            self.recent.popleft()
        best = int(reward.argmax())
        due = len(self.recent) == self.window and sum(self.recent) / self.window > self.tau
        if not due or float(reward[best]) <= 0:
            return Lesson(reward, advantage, before, None)
        self.student = students[best]
        self.promotions.append(datasets[best])
        self.recent.clear()
        return Lesson(reward, advantage, before, best)


def soar(
    teacher: Teacher[Data],
    student: Student,
    *,
    inner_train: Callable[[Student, Data, int], Student],
    evaluate: Callable[[Student, int], float],
    steps: int = 200,
    datasets: int = 4,
    repeats: int = 1,
    tau: float = 0.01,
    window: int = 3,
    seed: int = 0,
    watch: Callable[[int, Lesson], None] | None = None,
) -> Classroom[Student, Data]:
    """Train a teacher, by RLOO, to make up the problems from which a student gets better at real ones it always fails.

    The real problems give no gradient while nobody solves them, yet they can tell which practice helps. For the final
    student, train a fresh one on the real problems together with ``promotions``.

    Args:
        teacher: makes up data sets and learns from their credit.
        student: where the student begins; left as it is.
        inner_train, evaluate, repeats, tau, window: see ``Classroom``. The source trains ten steps of RLOO in batches
            of eight on 64 problems, and asks 64 real questions, greedily; that few make a noisy reward.
        steps: of the teacher.
        datasets: per step. (Neither this number nor that of repeats was found in the source.)
        seed: of everything.
        watch: called with every step and what came of it.

    Returns:
        The classroom as it stands in the end, with the last baseline student and the promoted data sets.

    Raises:
        ValueError: when there are fewer than two data sets per step.

    Source: Teaching Models to Teach Themselves: Reasoning at the Edge of Learnability.
    """
    if datasets < 2:
        raise ValueError(f"got {datasets} data sets per step, want 2 or more: each is compared with the others")
    room: Classroom[Student, Data] = Classroom(
        copy.deepcopy(student), inner_train, evaluate, tau=tau, window=window, repeats=repeats
    )
    for step in range(steps):
        proposed = [teacher.propose(derive(seed, step, "propose", place)) for place in range(datasets)]
        lesson = room.judge(proposed, derive(seed, step, "judge"))
        teacher.learn(proposed, lesson.advantage)
        if watch is not None:
            watch(step, lesson)
    return room


class Pairs(NamedTuple, Generic[Item]):
    """Problems with answers, and which template (n,) made each."""

    items: list[Item]
    template: Tensor


class TemplateTeacher(Generic[Item]):
    """A teacher that knows some templates, and learns how often to use each.

    p = softmax(logits);  logits += lr / g sum_k A_k sum_{i in X_k} (onehot_i - p) / n

    Args:
        templates: each makes a problem with its answer from a seed.
        pairs: n, problems of a data set.
        lr: learning rate.
    """

    def __init__(self, templates: Sequence[Callable[[int], Item]], *, pairs: int = 64, lr: float = 1.0) -> None:
        self.templates, self.pairs, self.lr = list(templates), pairs, lr
        self.logits = torch.zeros(len(self.templates), dtype=torch.float64)

    @property
    def probabilities(self) -> Tensor:
        """(J,) how often each template is used."""
        return self.logits.softmax(dim=0)

    def propose(self, seed: int) -> Pairs[Item]:
        """Draw templates, and a problem of each."""
        generator = torch_generator(seed, "templates")
        drawn = torch.multinomial(self.probabilities, self.pairs, replacement=True, generator=generator)
        return Pairs([self.templates[j](derive(seed, i)) for i, j in enumerate(drawn.tolist())], drawn)

    def learn(self, datasets: Sequence[Pairs[Item]], advantage: Tensor) -> None:
        """Use templates of good data sets more often."""
        used = torch.stack([data.template.bincount(minlength=len(self.logits)) for data in datasets])
        score = used / used.sum(dim=1, keepdim=True) - self.probabilities
        self.logits = self.logits + self.lr * (advantage.to(score).unsqueeze(1) * score).mean(dim=0)

    def state_dict(self) -> dict[str, Any]:
        """The logits."""
        return {"logits": self.logits.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self.logits = torch.tensor(state["logits"], dtype=torch.float64)
