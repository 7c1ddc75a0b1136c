"""The published systems: what each is, where it lives, which symptoms it answers, and whether its claim holds.

A status is computed, never kept by hand: it is the verdict of the claim's last result that ships with the package, as
long as neither the claim's file nor a module its method lives in has changed since; then it is ``stale``.
"""

from guerdon.catalog.entries import (
    FAMILIES,
    STATUSES,
    Symptom,
    System,
    find_system,
    symptoms,
    system_rows,
    systems,
    systems_for,
)
from guerdon.catalog.results import ClaimResult, load_result, results_folder, save_result, stamp

__all__ = [
    "FAMILIES",
    "STATUSES",
    "ClaimResult",
    "Symptom",
    "System",
    "find_system",
    "load_result",
    "results_folder",
    "save_result",
    "stamp",
    "symptoms",
    "system_rows",
    "systems",
    "systems_for",
]
