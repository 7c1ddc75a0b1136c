"""Where model-written code runs, so that it can neither do harm nor give itself a pass."""

from guerdon.sandbox.isolate import LEVELS, Level
from guerdon.sandbox.limits import Limits, Outcome, SandboxError, SandboxWarning
from guerdon.sandbox.pool import Sandbox, choose_level, run_python, why_unavailable
from guerdon.sandbox.problem_tests import CallTest, CodeTest, StdinTest, Test, code_tests, read_tests
from guerdon.sandbox.verdict import TestResult, run_tests

__all__ = [
    "LEVELS",
    "CallTest",
    "CodeTest",
    "Level",
    "Limits",
    "Outcome",
    "Sandbox",
    "SandboxError",
    "SandboxWarning",
    "StdinTest",
    "Test",
    "TestResult",
    "choose_level",
    "code_tests",
    "read_tests",
    "run_python",
    "run_tests",
    "why_unavailable",
]
