"""Known faults of known strength on an honest retouch, in couples with truth; see `preference_data.people.synthetic_pairs`."""

from dataclasses import dataclass, replace

import torch

from portraitkit.errors import ConfigError
from preference_data.generators import Candidate, GeneratorOptions, Subject
from preference_data.people.degradations import GROSS, RETOUCHED, degrade, has_marks
from preference_data.people.synthetic_pairs import PairPlan, draw_plan, verdicts_of
from preference_data.schema import DIMENSIONS, Fault, Origin

KINDS = {"retouched": RETOUCHED, "gross": GROSS, "clean": RETOUCHED}


@dataclass(frozen=True)
class Degradations:
    """Couples of candidates that share a `PairPlan`, with faults that retouchers make, gross ones, or those made where nothing was to be
    retouched: `variety` is of `KINDS`.
    """

    variety: str = "retouched"

    @property
    def name(self) -> str:
        """As recorded: degradations, degradations:gross or degradations:clean."""
        return "degradations" if self.variety == "retouched" else f"degradations:{self.variety}"

    def candidates(self, subject: Subject, count: int, seed: int) -> list[Candidate]:
        """See `Generator.candidates`; `count` is rounded up to whole couples."""
        made = []
        for couple in range((count + 1) // 2):
            plan_seed = seed + couple
            generator = torch.Generator().manual_seed(plan_seed)
            if self.variety == "clean":
                plan = clean_plan(subject.split, generator, "label" if couple % 3 else "apart")
            else:
                plan = draw_plan(subject.split, generator, kinds_of=KINDS[self.variety])
            if plan.kinds["identity"] == "lost_marks" and not has_marks(subject.case):  # who has none cannot lose them
                plan = replace(plan, kinds=plan.kinds | {"identity": "pale_lips"})
            scores = plan.scores()
            for index, side in enumerate(("a", "b")):
                faults = plan.faults(side)
                named = tuple(Fault(kind, strength) for kind, strength in faults.items())
                origin = Origin(self.name, named, plan_seed, is_label=not named)
                truth = {name: both[index] for name, both in scores.items()}
                made.append(Candidate(degrade(subject.case, faults, plan.variant), origin, truth, f"{self.variety}-{plan_seed}"))
        return made


def clean_plan(split: str, generator: torch.Generator, mode: str) -> PairPlan:
    """A plan for a face with nothing to retouch: faults on one or two dimensions, none of blemishes; no plan is an overall tie. Of mode
    "label" one candidate is the photo itself.
    """
    able = [name for name in DIMENSIONS if name != "blemish_removal"]
    while True:
        plan = draw_plan(split, generator, mode, kinds_of=RETOUCHED)
        few = [able[place] for place in torch.randperm(len(able), generator=generator)[: 1 + plan.variant % 2]]
        a, b = ({name: level if name in few else 0 for name, level in levels.items()} for levels in (plan.a, plan.b))
        plan = replace(plan, a=a, b=b)
        if verdicts_of(plan.scores())[1] != "tie":
            return plan


def open_degradations(argument: str | None, options: GeneratorOptions) -> Degradations:
    """The generator of `degradations`, faults that retouchers make; of `degradations:gross`, those of the embedded pairs; or of
    `degradations:clean`, what retouchers do to a photo that needs nothing.

    Raises:
        ConfigError: another argument.
    """
    if argument not in (None, "gross", "clean"):
        raise ConfigError(
            f"--generators degradations:{argument}: write degradations, degradations:gross for caricatures, or degradations:clean for "
            "retouches of a photo that needs none"
        )
    return Degradations(argument or "retouched")


GENERATOR = open_degradations
