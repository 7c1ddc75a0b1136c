"""The table of what goes wrong: its codes, why each hurts, when it is told, and which published systems answer it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

# Systems that are named for a finding; `guerdon methods --for SYMPTOM` has them all.
SYSTEMS_SHOWN = 3


@dataclass(frozen=True)
class Pathology:
    """One kind of thing that goes wrong.

    Attributes:
        code: its stable name.
        why: how it hurts, in a sentence.
        threshold: when it is told, in words.
        lacks: what a log must have to show it.
        symptoms: those of the catalog that it is.
    """

    code: str
    why: str
    threshold: str
    lacks: str
    symptoms: tuple[str, ...] = ()


PATHOLOGIES: tuple[Pathology, ...] = (
    Pathology(
        "unsolvable-tasks",
        "Without a single success there is nothing to prefer, and every step is spent for nothing.",
        "critical: after 5 steps and 100 trajectories all rewards have been the same, below the top. In a whole log: "
        "problems tried 16 times or more in several steps were never solved; a warning if they take over half of the "
        "trajectories, else info",
        "a reward",
        ("hard prompts ignored", "sparse outcome", "wasted rollouts"),
    ),
    Pathology(
        "saturated-tasks",
        "What is always solved earns every trajectory the same, so it teaches nothing and costs as much as the rest.",
        "critical: after 5 steps and 100 trajectories all rewards have been the same, at the top. In a whole log: "
        "problems tried 16 times or more were solved every time; a warning if they take over three quarters of the "
        "trajectories, else info",
        "a reward",
        ("wasted rollouts",),
    ),
    Pathology(
        "zero-variance-groups",
        "A group whose rewards are equal gives no trajectory credit, so its sampling is wasted.",
        "over 90 % of the groups have equal rewards; a warning, or info where most of them succeed",
        "groups of two or more",
        ("zero-variance groups",),
    ),
    Pathology(
        "drowned-component",
        "Credit follows the component of the large scale, and the others are not learned.",
        "in at least a quarter of the groups in which it differs, another does too, and there a usual difference of it "
        "moves the credit less than a tenth as much as one of the largest: a warning if it has lost a tenth of its "
        "range, or not gained a twentieth after 20 steps and isn't at its top, else info",
        "two components that differ within groups",
        ("drowned component", "scale mismatch"),
    ),
    Pathology(
        "constant-component",
        "A component that never differs teaches nothing, and hides that what it should measure isn't measured.",
        "one of several components has been constant for 20 steps: a warning, or info if it varied before and has not "
        "lost a tenth of its range",
        "two components",
        ("reward saturation",),
    ),
    Pathology(
        "conflicting-components",
        "What one component pulls up the other pulls down, so the policy stays between them.",
        "two components correlate below -0.5 within groups",
        "two components that differ within groups",
        ("drowned component",),
    ),
    Pathology(
        "reward-outliers",
        "A single reward far from all others decides its group, and mean and deviation of the batch.",
        "rewards farther than 1, and than 10 times the middle nine tenths of their batch are wide, from the median: "
        "a warning from the third different one in 20 steps on, before that info. Values that come three times are "
        "levels of the reward",
        "batches of 20 or more",
        ("scale mismatch", "exploding ratios"),
    ),
    Pathology(
        "noisy-reward",
        "Credit for the scorer's chance is credit for nothing, and hides the credit for what was written.",
        "equal texts of one problem are scored differently, by 20 repeated texts or more: a warning if that is 5 % of "
        "the component's variance, critical from 50 %, else info",
        "texts that were written more than once",
        ("noisy reward model",),
    ),
    Pathology(
        "reward-faults",
        "Samples without a score are missing from their groups, and seldom by chance.",
        "a reward call failed: info; from 5 % of the samples a warning, from 50 % critical",
        "a reward",
    ),
    Pathology(
        "judge-bias",
        "The policy learns what the judge likes instead of what it was to judge.",
        "a judge's score goes with length within groups, by a correlation 0.3 above that of what was meant, or 0.6 "
        "where nothing tells that; or its mean differs between places by a fifth of its deviation and "
        "four standard errors",
        "a component that a judge gives (--judge), with lengths or places (--position)",
        ("noisy reward model", "proxy hacked"),
    ),
    Pathology(
        "proxy-gold-divergence",
        "The reward is no longer a measure of what was meant, and more training makes it worse.",
        "since a watched reward was best, it has lost a tenth of its range, and the reward has gained one; both by "
        "four standard errors",
        "a reward that is watched (watch: true, --gold)",
        ("proxy hacked",),
    ),
    Pathology(
        "format-only-learning",
        "The easy reward for form takes the credit, and then there is none for content.",
        "in 40 steps or more a component of form has gained a fifth of its range, and content not a twentieth",
        "a component of form (--format) and one of content",
        ("drowned component", "sparse outcome"),
    ),
    Pathology(
        "duplicate-rollouts",
        "Copies of a failure explore nothing, and a group of copies has nothing to compare.",
        "over a third of the trajectories fail with a text that another of their group has; to fail is to earn less "
        "than the mean of the group, or as much as all of it below the top",
        "texts and groups",
        ("mode collapse", "entropy collapse"),
    ),
    Pathology(
        "answer-concentration",
        "A policy that says the same whatever is asked has learned what is often right, not how to answer.",
        "over 80 % of a batch of 8 problems or more give one answer that earns less than 90 % of the reward's range, "
        "or over 95 % give one, whatever it earns",
        "texts of 8 problems a step",
        ("mode collapse", "penalty hacking"),
    ),
    Pathology(
        "entropy-collapse",
        "A policy that is certain draws the same again and again, and finds nothing better.",
        "entropy is below a tenth of its start while the reward is below 90 % of its range",
        "entropy by step (of TRL: trainer_state.json)",
        ("entropy collapse",),
    ),
    Pathology(
        "length-collapse",
        "Answers that become too short to hold a solution earn what is paid for saying nothing.",
        "length is below a third of its start: a warning if a reward has lost a tenth of its range, or if two actions "
        "are left and the reward is not near its top; else info",
        "lengths over steps",
        ("penalty hacking", "proxy hacked"),
    ),
    Pathology(
        "length-explosion",
        "Length that is paid for itself costs compute and crowds out what was meant.",
        "length is above twice its start: a warning if credit correlates with length above 0.5 within groups, or a "
        "reward has lost a tenth of its range; else info",
        "lengths over steps",
        ("proxy hacked", "costly answers"),
    ),
    Pathology(
        "truncation",
        "A trajectory that is cut is scored for what the limit let it say.",
        "over half of a language policy's trajectories were cut",
        "which trajectories were cut (--max-length; of TRL: trainer_state.json)",
        ("costly answers",),
    ),
    Pathology(
        "kl-blowup",
        "Steps that are too large leave the region in which the batch says anything, and what the policy knew.",
        "over 3 steps, more than 0.1 nats per action within an update, or 1 from the reference",
        "KL by step",
        ("off-policy drift", "forgetting"),
    ),
    Pathology(
        "ratio-bias",
        "If sampler and trainer disagree about probabilities, the gradient is that of another policy.",
        "the mean ratio differs from 1 by more than 0.1",
        "importance ratios by step",
        ("off-policy drift", "exploding ratios"),
    ),
    Pathology(
        "clip-saturation",
        "Actions whose ratio is cut have no gradient, so much of the batch is not learned from.",
        "over 30 % of the actions with credit are cut",
        "clip fractions by step",
        ("off-policy drift",),
    ),
    Pathology(
        "stale-policy",
        "Samples of an old policy say little about the present one.",
        "batches are more than 4 updates old on average",
        "how old batches are (of async runs), or a column with the version that sampled (--version-column)",
        ("off-policy drift",),
    ),
    Pathology(
        "advantage-leak",
        "The policy is trained on words that it did not choose: prompts, tool output, padding.",
        "any credit where the policy did not act; critical",
        "credit by action, with the mask of actions",
    ),
    Pathology(
        "not-finite",
        "Weights are no longer trained, and soon are NaN themselves.",
        "loss, gradient, reward or entropy is NaN or infinite; critical",
        "a loss, a reward or an entropy",
        ("exploding ratios",),
    ),
)  # fmt: skip

CODES: tuple[str, ...] = tuple(pathology.code for pathology in PATHOLOGIES)


def pathology(code: str) -> Pathology:
    """The row of a code."""
    return PATHOLOGIES[CODES.index(code)]


@cache
def remedies(code: str) -> tuple[dict[str, str], ...]:
    """Published systems that answer a pathology, those that work first: ``system``, ``title``, ``home``, ``status``,
    ``claim`` (the command that repeats its experiment).

    Systems that are not implemented are left out.
    """
    from guerdon.catalog import STATUSES, systems_for

    symptoms = pathology(code).symptoms
    found = {system.name: system for symptom in symptoms for system in systems_for(symptom) if system.claim}
    ranked = sorted(found.values(), key=lambda system: STATUSES.index(system.status))
    return tuple(
        {
            "system": system.name,
            "title": system.title,
            "home": ", ".join(system.home),
            "status": system.status,
            "claim": f"guerdon claims run {system.name}",
        }
        for system in ranked[:SYSTEMS_SHOWN]
    )
