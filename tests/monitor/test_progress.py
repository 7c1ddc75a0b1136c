import io

import pytest
from rich.console import Console

from guerdon.monitor.alarms import Alarm
from guerdon.monitor.progress import Progress, duration, status, table

METRICS = {
    "reward/mean": 0.4125,
    "groups/zero_variance": 0.25,
    "entropy/mean": 1.234,
    "length/mean": 6.4,
    "actions_per_second": 12345.0,
    "update/loss": 9.0,
}
LINE = "reward 0.412 · useful 75% · entropy 1.23 · length 6 · actions/s 12.3k"
ALARM = Alarm("no-signal", "critical", "nothing [b]can[/b] be learned", 3)


def plain(**options) -> tuple[Progress, io.StringIO, list[float]]:
    """A progress that writes to a file and reads a clock that the test moves."""
    out, now = io.StringIO(), [0.0]
    progress = Progress(console=Console(file=out, soft_wrap=True, highlight=False), **options)
    progress._clock = lambda: now[0]
    return progress, out, now


def test_status_names_what_exists():
    assert " · ".join(status(METRICS)) == LINE
    assert status({"loss": 0.5}) == ["loss 0.500"]
    assert status({"reward/mean": 231.7}) == ["reward 232"]
    assert status({}) == []


def test_faults_are_named_by_kind_where_there_are_any():
    assert status({"faults": 0.0}) == []
    assert status({"loss": 0.5, "faults": 3.0, "faults/killed": 1.0, "faults/timeout": 2.0}) == [
        "loss 0.500",
        "faults 3 (1 killed, 2 timeout)",
    ]
    assert status({"faults": 2.0}) == ["faults 2"]


def test_without_a_terminal_a_line_every_few_seconds_and_the_last_one_always():
    progress, out, now = plain(plain_seconds=5.0)
    progress.start(10, "training")
    for step in range(10):
        now[0] += 2.0
        progress.step(step, {"reward/mean": step / 10})
    progress.stop()
    assert out.getvalue().splitlines() == [
        "training 1/10 · reward 0.000 · 18 s left",
        "training 4/10 · reward 0.300 · 12 s left",
        "training 7/10 · reward 0.600 · 6 s left",
        "training 10/10 · reward 0.900",
    ]


def test_a_resumed_phase_does_not_count_old_steps_into_the_time_left():
    progress, out, now = plain()
    progress.start(100, "training", done=90)
    now[0] = 4.0
    progress.step(90, {})
    assert out.getvalue().strip().endswith("36 s left")


def test_alarms_and_notes_are_shown_as_plain_text_even_when_quiet():
    progress, out, _ = plain(quiet=True)
    progress.start(2, "training")
    progress.step(0, METRICS)
    progress.alarm(ALARM)
    progress.note("[x] saved")
    progress.step(1, METRICS)
    progress.stop()
    assert out.getvalue() == "critical no-signal at step 3: nothing [b]can[/b] be learned\n[x] saved\n"


def test_alarms_are_counted_in_the_line_of_their_phase():
    progress, out, _ = plain(plain_seconds=0.0)
    progress.start(3, "training")
    progress.alarm(ALARM)
    progress.step(0, {})
    progress.alarm(ALARM)
    progress.step(1, {})
    progress.start(1, "again")
    progress.step(0, {})
    lines = out.getvalue().splitlines()
    assert "1 alarm" in lines[1]
    assert "2 alarms" in lines[3]
    assert "alarm" not in lines[4]


def test_a_terminal_gets_one_line_that_is_redrawn():
    out = io.StringIO()
    progress = Progress(console=Console(file=out, force_terminal=True, width=140, highlight=False, soft_wrap=True))
    progress.start(7, "training")
    progress.step(4, METRICS)
    progress.alarm(ALARM)
    progress.step(5, METRICS)
    progress.stop()
    text = out.getvalue()
    assert "\x1b[2K" in text
    assert LINE in text
    assert "1 alarm · " + LINE in text
    assert "6/7" in text
    assert "nothing [b]can[/b] be learned" in text


def test_everything_goes_to_standard_error(capsys):
    progress = Progress()
    progress.start(1, "training")
    progress.step(0, METRICS)
    progress.stop()
    table("end", [("greedy", 0.25, 0.5)])
    captured = capsys.readouterr()
    assert captured.out == ""
    assert LINE in captured.err
    assert "greedy" in captured.err


def test_zero_steps_is_no_error():
    progress, out, _ = plain()
    progress.start(0, "training")
    progress.stop()
    progress.stop()
    assert out.getvalue() == ""


def test_table_writes_numbers_short_and_text_as_it_is():
    out = io.StringIO()
    console = Console(file=out, width=100)
    table("before [b]", [("[i]greedy", 0.12345, None, "+1"), ("mean", 250.0, 499.6, 3)], console=console)
    text = out.getvalue()
    assert "before [b]" in text
    cells = [[c.strip() for c in line.strip("│").split("│")] for line in text.splitlines() if line.startswith("│")]
    assert cells == [["[i]greedy", "0.123", "–", "+1"], ["mean", "250", "500", "3"]]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")],
)
def test_duration(seconds, text):
    assert duration(seconds) == text
