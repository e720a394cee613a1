"""Known faults of known strength on an honest retouch, in couples with truth; see `preference_data.people.synthetic_pairs`."""

from dataclasses import dataclass, field, replace

import torch

from portraitkit.errors import ConfigError
from preference_data.generators import Candidate, GeneratorOptions, Subject
from preference_data.people.degradations import GROSS, RETOUCHED, Kinds, degrade, has_marks
from preference_data.people.synthetic_pairs import draw_plan
from preference_data.schema import Fault, Origin


@dataclass(frozen=True)
class Degradations:
    """Couples of candidates that share a `PairPlan`, with faults of the kinds of `kinds`."""

    kinds: Kinds = field(default_factory=lambda: RETOUCHED)
    name: str = "degradations"

    def candidates(self, subject: Subject, count: int, seed: int) -> list[Candidate]:
        """See `Generator.candidates`; `count` is rounded up to whole couples."""
        made = []
        for couple in range((count + 1) // 2):
            plan_seed = seed + couple
            plan = draw_plan(subject.split, torch.Generator().manual_seed(plan_seed), kinds_of=self.kinds)
            if plan.kinds["identity"] == "lost_marks" and not has_marks(subject.case):  # who has none cannot lose them
                plan = replace(plan, kinds=plan.kinds | {"identity": "pale_lips"})
            scores = plan.scores()
            for index, side in enumerate(("a", "b")):
                faults = plan.faults(side)
                named = tuple(Fault(kind, strength) for kind, strength in faults.items())
                origin = Origin(self.name, named, plan_seed, is_label=not named)
                truth = {name: both[index] for name, both in scores.items()}
                made.append(Candidate(degrade(subject.case, faults, plan.variant), origin, truth, f"plan-{plan_seed}"))
        return made


def open_degradations(argument: str | None, options: GeneratorOptions) -> Degradations:
    """The generator of `degradations`, faults that retouchers make, or of `degradations:gross`, those of the embedded pairs.

    Raises:
        ConfigError: another argument.
    """
    if argument not in (None, "gross"):
        raise ConfigError(f"--generators degradations:{argument}: write degradations, or degradations:gross for caricatures")
    return Degradations(RETOUCHED if argument is None else GROSS)


GENERATOR = open_degradations
