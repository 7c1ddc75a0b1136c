import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from attacks import descendants, remaining

from guerdon.sandbox import (
    Limits,
    Sandbox,
    SandboxError,
    SandboxWarning,
    choose_level,
    pool,
    run_python,
    why_unavailable,
)


def test_a_program_runs_as_a_main_module(sandbox):
    code = """
import sys
if __name__ == "__main__":
    name = input()
    print("hello", name, *sys.stdin.read().split())
    print("oops", file=sys.stderr)
    exit(3)
"""
    outcome = sandbox.run(code, stdin="wörld\nx y\n")
    assert (outcome.status, outcome.exit_code) == ("error", 3)
    assert (outcome.stdout, outcome.stderr) == ("hello wörld x y\n", "oops\n")
    assert outcome.level == sandbox.level
    assert 0 <= outcome.cpu_seconds <= outcome.seconds + 0.1


@pytest.mark.parametrize(
    ("code", "status", "exit_code"),
    [
        ("", "ok", 0),
        ("raise SystemExit", "ok", 0),
        ("raise SystemExit('why')", "error", 1),
        ("1 / 0", "error", 1),
        ("def f(:", "error", 1),
        ("import os; os.abort()", "killed", -signal.SIGABRT),
        ("import ctypes; ctypes.string_at(0)", "killed", -signal.SIGSEGV),
        ("import os; os.close(1); os.close(2)", "ok", 0),
    ],
)
def test_the_end_of_a_program(code, status, exit_code, strongest):
    outcome = strongest.run(code)
    assert (outcome.status, outcome.exit_code) == (status, exit_code)
    assert outcome.ok == (status == "ok")


def test_what_a_program_does_at_its_end_happens(strongest):
    code = """
import atexit, threading, time
atexit.register(print, "hook")
threading.Thread(target=lambda: (time.sleep(0.05), print("thread"))).start()
file = open("/tmp/out", "w"); file.write("unflushed")
out = open(1, "w", closefd=False); out.write("late")
"""
    assert strongest.run(code).stdout.split() in (["thread", "hook", "late"], ["latethread", "hook"])


def test_a_traceback_shows_the_program_alone(strongest):
    said = strongest.run("def f():\n    return 1 / 0\nf()\n").stderr
    assert said.count("File ") == said.count('File "solution.py"') == 2
    assert "return 1 / 0" in said
    assert said.endswith("ZeroDivisionError: division by zero\n")


@pytest.mark.parametrize(
    ("limits", "code", "status"),
    [
        ({"wall_time": 0.3}, "import time; time.sleep(60)", "wall_time"),
        ({"cpu_time": 1}, "while True: pass", "cpu_time"),
        ({"output": 100}, "print('x' * 101)", "output"),
        ({"output": 100}, "while True: print('x' * 1000)", "output"),
        ({"output": 100}, "import sys; sys.stderr.write('x' * 101)", "output"),
        ({"memory": 64 << 20}, "bytearray(100 << 20)", "error"),
        ({"file_size": 1000}, "f = open('f', 'wb'); f.write(bytes(1001)); f.close()", "error"),
    ],
)
def test_limits(limits, code, status, sandbox):
    outcome = sandbox.run(code, limits=Limits(**limits))
    assert outcome.status == status
    assert outcome.seconds < 10
    assert len(outcome.stdout) <= 100


def test_what_stays_within_its_limits_is_whole(sandbox):
    outcome = sandbox.run("print('x' * 99)", limits=Limits(output=100))
    assert (outcome.status, outcome.stdout) == ("ok", "x" * 99 + "\n")
    large = sandbox.run("import sys; print(len(sys.stdin.read())); print('y' * 500_000)", stdin="x" * 500_000)
    assert large.stdout == "500000\n" + "y" * 500_000 + "\n"


def test_limits_that_allow_nothing_are_refused():
    with pytest.raises(SandboxError, match="wall_time is 0, want more than 0"):
        Limits(wall_time=0)


def test_programs_meet_nothing_of_each_other(sandbox):
    mark = (
        "import builtins, json, os; builtins.left = json.left = 1; os.environ['LEFT'] = '1'; open('left', 'w').close()"
    )
    look = (
        "import builtins, json, os\n"
        "print(hasattr(builtins, 'left'), hasattr(json, 'left'), sorted(os.environ), os.listdir())"
    )
    fresh = sandbox.run(look).stdout
    assert sandbox.run(mark).ok
    assert sandbox.run(look).stdout.replace(" ", "").split("/")[0] == fresh.replace(" ", "").split("/")[0]
    assert fresh.startswith("False False")
    assert fresh.endswith("[]\n")


def test_the_environment_is_fixed(sandbox, monkeypatch):
    monkeypatch.setenv("SECRET_KEY", "value")
    worker = pool.Worker(sandbox.level)
    names = pool.run_script(worker, "import os; print(*sorted(os.environ))", "", Limits()).stdout.split()
    worker.close()
    assert names == sorted(
        ["HOME", "TMPDIR", "PYTHONHASHSEED", "PYTHONUTF8", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"]
    )


def test_a_worker_is_reused_and_replaced_when_it_dies(strongest):
    strongest.run("")
    first = strongest._idle[-1]
    strongest.run("")
    assert strongest._idle[-1] is first
    first.close()
    assert strongest.run("print(1)").stdout == "1\n"
    assert first not in strongest._idle


def test_threads_share_the_workers(strongest):
    with ThreadPoolExecutor(4) as threads:
        outcomes = list(threads.map(lambda n: strongest.run(f"print({n} ** 2)").stdout, range(12)))
    assert outcomes == [f"{n**2}\n" for n in range(12)]


def test_a_worker_outlives_the_thread_that_started_it(strongest):
    with Sandbox(strongest.level) as fresh:
        thread = threading.Thread(target=fresh.run, args=("",))
        thread.start()
        thread.join()
        worker = fresh._idle[-1]
        time.sleep(0.1)
        assert worker.ready
        assert fresh.run("print(1)").stdout == "1\n"


def test_a_fork_of_the_trainer_has_workers_of_its_own(strongest):
    strongest.run("")
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(write, strongest.run("print('from the fork')").stdout.encode())
            strongest.close()
        finally:
            os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    assert os.read(read, 100) == b"from the fork\n"
    os.close(read)
    assert strongest.run("print(1)").stdout == "1\n"


def test_close_leaves_no_process_and_no_file(sandbox, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = descendants()
    worker = pool.Worker(sandbox.level)
    assert descendants() - before
    worker.close()
    assert not remaining(before)
    assert not list(tmp_path.iterdir())


def test_what_a_program_left_running_is_killed_with_it(sandbox):
    sandbox.run("")
    before = descendants()
    code = """
import os, time
for _ in range(3):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(60)
        os._exit(0)
"""
    assert sandbox.run(code).ok
    assert not remaining(before)


def test_the_death_of_the_trainer_ends_the_program(sandbox, tmp_path):
    trainer = f"""
import os, tempfile, threading, time, warnings
tempfile.tempdir = {str(tmp_path)!r}
from guerdon.sandbox import Sandbox
warnings.simplefilter("ignore")
sandbox = Sandbox({sandbox.level!r})
sandbox.run("")
fork = os.fork()  # which must not keep the worker alive
if fork == 0:
    time.sleep(60)
    os._exit(0)
threading.Thread(target=sandbox.run, args=("import time; time.sleep(60)",), daemon=True).start()
time.sleep(0.3)
print(fork, flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", trainer], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        fork = int(process.stdout.readline())
        started = family(process.pid) - {process.pid, fork}
        process.kill()
    assert len(started) >= 3
    deadline = time.monotonic() + 10
    while (left := {pid for pid in started if Path(f"/proc/{pid}").exists()}) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(fork, signal.SIGKILL)
    assert not left
    assert not list(tmp_path.iterdir())


def family(ancestor: int) -> set[int]:
    """A process and all that came of it."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found, ours = {ancestor}, {ancestor}
    while ours := {pid for pid, parent in parents.items() if parent in ours}:
        found |= ours
    return found


def test_more_folders_can_be_made_readable(isolated, tmp_path):
    tmp_path.chmod(0o755)  # programs are another user
    (tmp_path / "helper.py").write_text("answer = 42")
    (tmp_path / "later.py").write_text("answer = 43")
    code = "import helper; print(helper.answer, 'helper' in sys.modules)".replace("import helper", "import sys, helper")
    assert isolated.run(code).status == "error"
    with Sandbox(isolated.level, readable=[str(tmp_path)], preload=["helper"]) as wider:
        assert wider.run(code).stdout == "42 True\n"
        assert wider.run("import later; print(later.answer)").stdout == "43\n"
        assert wider.run(f"open({str(tmp_path / 'new')!r}, 'w')").status == "error"
    assert [path.name for path in tmp_path.iterdir() if path.suffix and path.stem != "later"] == ["helper.py"]


def test_standard_input_has_its_usual_file(isolated):
    assert isolated.run("print(open('/dev/stdin').read())", stdin="given").stdout == "given\n"


def test_without_isolation_there_is_a_loud_warning_or_a_refusal(monkeypatch):
    monkeypatch.setattr(
        pool,
        "why_unavailable",
        lambda level: None if level == "rlimits" else f"sandbox level '{level}' does not start: no",
    )
    with pytest.warns(SandboxWarning, match=r"WITHOUT ISOLATION.*'bubblewrap' does not start: no"):
        assert choose_level() == "rlimits"
    with pytest.raises(
        SandboxError, match=r"'namespaces' does not start: no; level 'rlimits' does not isolate.*install"
    ):
        choose_level(require_isolation=True)
    with pytest.raises(SandboxError, match="does not isolate, and isolation is required"):
        choose_level("rlimits", require_isolation=True)


def test_the_strongest_level_that_works_is_chosen(monkeypatch):
    works = {"bubblewrap": "broken", "namespaces": None, "rlimits": None}
    monkeypatch.setattr(pool, "why_unavailable", works.__getitem__)
    assert choose_level() == "namespaces"
    works["bubblewrap"] = None
    assert choose_level() == "bubblewrap"
    works["bubblewrap"] = "broken"
    with pytest.raises(SandboxError, match="broken"):
        choose_level("bubblewrap")
    with pytest.raises(SandboxError, match="no sandbox level 'docker'; want one of bubblewrap, namespaces, rlimits"):
        choose_level("docker")


@pytest.mark.parametrize(
    ("level", "command"),
    [
        ("bubblewrap", "bwrap --unshare-all --ro-bind / / --tmpfs /tmp true"),
        ("namespaces", "unshare --user --map-root-user --mount --pid --net --ipc --uts --cgroup --fork true"),
    ],
)
def test_a_level_works_where_its_means_do(level, command):
    """Else a fault of ours would look like a machine without namespaces, and every test of isolation be skipped."""
    if (
        not shutil.which(command.split()[0])
        or subprocess.run(command.split(), capture_output=True, check=False).returncode
    ):
        pytest.skip(f"'{command}' fails here")
    assert why_unavailable(level) is None


def test_a_program_has_its_standard_streams_and_no_other_descriptor(sandbox):
    code = """
import os
def is_open(descriptor):
    try:
        return bool(os.fstat(descriptor))
    except OSError:
        return False
print([descriptor for descriptor in range(1024) if is_open(descriptor)])
"""
    assert sandbox.run(code).stdout == "[0, 1, 2]\n"


def test_a_program_has_no_capability_and_can_gain_none(sandbox):
    code = """
import ctypes, os
libc = ctypes.CDLL(None)
version, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
libc.capget(version, sets)
bounding = [number for number in range(40) if libc.prctl(23, number, 0, 0, 0) == 1]
print(list(sets), bounding, libc.prctl(39, 0, 0, 0, 0))
"""
    outcome = sandbox.run(code)
    held, _, rest = outcome.stdout.partition("] ")
    assert held == "[0, 0, 0, 0, 0, 0"
    # Only those that hold CAP_SETPCAP can empty the bounding set; without privileges to gain, it grants nothing.
    assert rest in ("[] 1\n", f"{list(range(40))} 1\n")


def test_a_level_that_isolates_nothing_is_found_out(monkeypatch):
    """The probe looks at what a program sees, not at whether a command exists."""
    why = why_unavailable.__wrapped__
    monkeypatch.setattr(pool, "ISOLATED", frozenset({"rlimits"}))
    assert "does not isolate" in why("rlimits")


def test_a_level_that_does_not_start_says_why(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert "there is no 'bwrap' on the PATH" in why_unavailable.__wrapped__("bubblewrap")
    monkeypatch.setattr("guerdon.sandbox.isolate._interpreter", lambda: "/nowhere/python")
    assert "No such file or directory: '/nowhere/python'" in why_unavailable.__wrapped__("rlimits")


def test_a_worker_that_breaks_says_why(monkeypatch):
    monkeypatch.setattr("guerdon.sandbox.isolate._START", "import sys; sys.exit('it broke')")
    assert why_unavailable.__wrapped__("rlimits") == "sandbox level 'rlimits' does not start: it broke"


def test_run_python_uses_the_shared_sandbox():
    if why_unavailable("bubblewrap") and why_unavailable("namespaces"):
        pytest.skip("no level isolates here")
    assert run_python("print(input())", stdin="x", require_isolation=True).stdout == "x\n"
