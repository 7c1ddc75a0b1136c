import pytest
import torch

from guerdon.curriculum.teacher import Classroom, TemplateTeacher, soar


class Student:
    """Knows some facts."""

    def __init__(self, known=()):
        self.known = set(known)


def taught(student, data, seed):
    """Let the student learn what the data say, in place."""
    student.known |= set(data)
    return student


def share(student, seed):
    """Share of the facts 0 to 3."""
    return len(student.known & {0, 1, 2, 3}) / 4


def classroom(**options):
    return Classroom(Student(), taught, share, **options)


def test_rewards_are_gains_over_the_baseline_and_compared_with_the_others():
    lesson = classroom().judge([[0], [0, 1], [9]], seed=0)
    assert lesson.reward.tolist() == [0.25, 0.5, 0.0]
    assert lesson.advantage.tolist() == pytest.approx([0.25 - 0.25, 0.5 - 0.125, 0.0 - 0.375])
    assert lesson.baseline == 0
    assert lesson.promoted is None


def test_trainings_leave_the_baseline_student_alone():
    room = classroom(tau=10.0)
    for step in range(4):
        assert room.judge([[0], [1]], seed=step).reward.tolist() == [0.25, 0.25]
    assert room.student.known == set()


def test_the_best_student_is_promoted_once_the_moving_average_is_high_enough():
    room = classroom(window=3)
    promoted = [room.judge([[0], [0, 1], [9]], seed=step).promoted for step in range(3)]
    assert promoted == [None, None, 1]
    assert room.student.known == {0, 1}
    assert room.promotions == [[0, 1]]
    assert room.judge([[0], [1]], seed=9).reward.tolist() == [0.0, 0.0]
    assert room.judge([[2], [2]], seed=9).promoted is None, "rewards from before a promotion are forgotten"


def test_the_threshold_is_exceeded_not_reached():
    assert classroom(window=1, tau=0.25).judge([[0], [1]], seed=0).promoted is None
    assert classroom(window=1, tau=0.24).judge([[0], [1]], seed=0).promoted == 0


def test_a_student_that_is_no_better_is_not_promoted():
    room = classroom(window=2, tau=0.1)
    room.judge([[0], [0, 1]], seed=0)
    assert room.judge([[9], [9]], seed=1).promoted is None


def test_both_students_answer_the_same_questions_and_every_training_differs():
    asked, trained = [], []

    def train(student, data, seed):
        trained.append(seed)
        return student

    def ask(student, seed):
        asked.append(seed)
        return 0.0

    Classroom(Student(), train, ask, repeats=2).judge([[0], [1]], seed=3)
    assert len(set(asked)) == 1
    assert len(asked) == 5
    assert len(set(trained)) == 4


def test_repeated_trainings_are_averaged():
    gains = iter([0.0, 0.4, 0.2, 0.1, 0.3])
    room = Classroom(Student(), taught, lambda student, seed: next(gains), repeats=2)
    assert room.judge([[0], [1]], seed=0).reward.tolist() == pytest.approx([0.3, 0.2])


def test_a_teacher_of_templates_moves_to_what_is_rewarded_by_hand():
    teacher = TemplateTeacher([lambda seed: "a", lambda seed: "b"], pairs=4, lr=2.0)
    data = teacher.propose(0)
    assert data.items == [["a", "b"][j] for j in data.template.tolist()]
    one, two = (data._replace(template=torch.tensor(t)) for t in ([0, 0, 0, 0], [0, 0, 1, 1]))
    teacher.learn([one, two], torch.tensor([1.0, -1.0]))
    assert teacher.logits.tolist() == pytest.approx([2.0 * 0.5 / 2, 2.0 * -0.5 / 2])
    again = TemplateTeacher([lambda seed: "a", lambda seed: "b"])
    again.load_state_dict(teacher.state_dict())
    assert again.probabilities.equal(teacher.probabilities)


def test_soar_finds_the_useful_template_and_leaves_the_student_it_was_given():
    teacher = TemplateTeacher([lambda seed: seed % 4, lambda seed: 9], pairs=2, lr=4.0)
    student, seen = Student(), []
    room = soar(
        teacher,
        student,
        inner_train=lambda s, data, seed: taught(s, data.items, seed),
        evaluate=share,
        steps=12,
        watch=lambda step, lesson: seen.append((step, lesson.promoted)),
    )
    assert student.known == set()
    assert room.student.known >= {0, 1, 2, 3}
    assert len(room.promotions) == sum(place is not None for _, place in seen) > 0
    assert teacher.probabilities[0] > 0.6
    assert [step for step, _ in seen] == list(range(12))


def test_too_few_data_sets_and_windows_are_refused():
    with pytest.raises(ValueError, match="want 2 or more"):
        soar(TemplateTeacher([]), Student(), inner_train=taught, evaluate=share, datasets=1)
    with pytest.raises(ValueError, match="window is 0"):
        classroom(window=0)
