"""Known faults of known strength on an honest retouch, in couples with truth; see `preference_data.people.synthetic_pairs`."""

from dataclasses import dataclass

import torch

from portraitkit.errors import ConfigError
from preference_data.generators import Candidate, GeneratorOptions, Subject
from preference_data.people.degradations import degrade
from preference_data.people.synthetic_pairs import draw_plan, stage_of
from preference_data.schema import Fault, Origin


@dataclass(frozen=True)
class Degradations:
    """Couples of candidates that share a `PairPlan`."""

    name: str = "degradations"

    def candidates(self, subject: Subject, count: int, seed: int) -> list[Candidate]:
        """See `Generator.candidates`; `count` is rounded up to whole couples."""
        stage, made = stage_of(subject.case), []
        for couple in range((count + 1) // 2):
            plan_seed = seed + couple
            plan = draw_plan(subject.split, torch.Generator().manual_seed(plan_seed))
            scores = plan.scores()
            for index, side in enumerate(("a", "b")):
                faults = plan.faults(side)
                named = tuple(Fault(kind, strength) for kind, strength in faults.items())
                origin = Origin(self.name, named, plan_seed, is_label=not named)
                truth = {name: both[index] for name, both in scores.items()}
                made.append(Candidate(degrade(stage, faults, plan.variant), origin, truth, f"plan-{plan_seed}"))
        return made


def open_degradations(argument: str | None, options: GeneratorOptions) -> Degradations:
    """The generator.

    Raises:
        ConfigError: an argument was given.
    """
    if argument is not None:
        raise ConfigError(f"--generators degradations:{argument}: takes no argument; write degradations")
    return Degradations()


GENERATOR = open_degradations
