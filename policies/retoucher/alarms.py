"""Early warnings of a run that goes wrong: hacking, collapse, an off-policy ratio, a widening gap between rollouts and the ODE."""

from dataclasses import dataclass, field

import torch

from portraitkit.stats import GroupRank, rank_correlation

RATIO_TOLERANCE = 1e-3
SPREAD_FLOOR = 5e-4
GAP = 0.15
WINDOW = 5  # Validations over which a judge and the verifiable rewards are followed
STEPS = 10  # Training steps over which their agreement inside groups is averaged
RANKS = 0.5  # Rank correlation inside groups from which on a judge is worth asking about a policy's own rollouts
GRAIN = 0.9  # Residual grain that honest retouches stay below, in percent of full scale: whole anchors have .5 to .6 (docs/reliability.md)
VARIETY = 15  # Training steps whose largest diversity counts: it depends on which step was drawn
DIVERSITY = 0.5  # Of the first steps' diversity; less is a policy whose candidates have become alike
ERRORS = {"identity_distance": 0.05, "texture_error": 0.08, "tone_error": 1.5, "lip_dE": 2.0}
"""Errors that may not grow while the reward rises, and by how much they may: the tone in CIELAB's dE76, lips in CIEDE2000."""
SERIOUS = ("hacking", "collapse", "spread", "judge hacked")  # What --on-alarm stop stops at
APART = -0.5  # Rank correlation over the window from which on the two go opposite ways


@dataclass(frozen=True)
class Alarm:
    """One warning: the training step, a stable name, and what was seen."""

    step: int
    name: str
    message: str


@dataclass
class Alarms:
    """Watches validations and training steps; each kind of alarm is raised at most once every `quiet` steps."""

    quiet: int = 20  # see above
    raised: list[Alarm] = field(default_factory=list)  # alarms so far
    first: dict[str, float] = field(default_factory=dict)  # means of the first validation
    # mean of judge and of the verifiable rewards at the last `WINDOW` validations, where a judge is in use
    courses: list[tuple[float, float]] = field(default_factory=list)
    diversities: list[float] = field(default_factory=list)  # of candidates in the first `VARIETY` training steps, then in the last
    sound: int = 0  # step of the last validation that raised nothing `SERIOUS`
    agreements: list[float] = field(default_factory=list)  # rank correlation of the two inside groups in the last `STEPS` training steps

    def _raise(self, step: int, name: str, message: str) -> list[Alarm]:
        last = [alarm.step for alarm in self.raised if alarm.name == name]
        if last and step - last[-1] < self.quiet:
            return []
        alarm = Alarm(step, name, message)
        self.raised.append(alarm)
        return [alarm]

    def after_step(
        self,
        step: int,
        *,
        spread: float,
        ratio_deviation: float,
        on_policy: bool,
        clip_range: float,
        agreement: float | None = None,
        diversity: float | None = None,
    ) -> list[Alarm]:
        """Check a training step; returns the alarms newly raised. `spread` is the mean standard deviation of the reward inside groups,
        `ratio_deviation` the largest |ratio - 1|, 0 if the policy had not moved since the rollout (`on_policy`). `agreement` is the rank
        correlation of judge and verifiable rewards inside groups, NaN where it is not known, `diversity` the mean distance of two
        candidates of a group, in pixel values of [0, 1].
        """
        out: list[Alarm] = []
        if spread < SPREAD_FLOOR:
            text = f"candidates of a group score alike (standard deviation {spread:.4f}): raise --eta or --group-size"
            out += self._raise(step, "spread", text)
        if diversity is not None:
            first, last = self.diversities[:VARIETY], [*self.diversities[VARIETY:], diversity][-VARIETY:]
            self.diversities = [*first, *last]
            if len(self.diversities) == 2 * VARIETY and max(last) < DIVERSITY * max(first):
                text = f"candidates of a group are {max(last) / max(first):.2f} times as far apart as at first: raise --kl-beta, or stop"
                out += self._raise(step, "diversity", text)
        limit = RATIO_TOLERANCE * clip_range if on_policy else 50 * clip_range
        if ratio_deviation > max(limit, 1e-6):
            text = f"likelihood ratio off 1 by {ratio_deviation:.2e}: lower --learning-rate or --updates-per-step"
            out += self._raise(step, "ratio", text)
        if agreement is not None and agreement == agreement:
            self.agreements = [*self.agreements, agreement][-STEPS:]
            mean = sum(self.agreements) / len(self.agreements)
            if len(self.agreements) == STEPS and mean < 0:
                text = f"inside groups the judge ranks candidates against the verifiable rewards (rank correlation {mean:.2f} over "
                out += self._raise(step, "judge disagrees", f"{text}{STEPS} steps): lower its weight or train it on such pairs")
        return out

    def after_first_groups(self, step: int, rank: GroupRank) -> list[Alarm]:
        """Check how the judge ranked the first groups of the run, overall; returns the alarm if it is newly raised."""
        if not rank.rank < RANKS:
            return []
        low, high = rank.ci95
        chance = f"no better than at random, as far as {rank.groups} groups show"
        how = "the wrong way round" if high < 0 else "too weakly" if low > 0 else chance
        found = f"the judge ranks this policy's rollouts {how}: not to be trusted as a reward. Rank correlation with the "
        fix = "lower its weight, or train it on pairs of make-preferences build --generators rollout"
        return self._raise(step, "judge's rank", f"{found}verifiable rewards inside groups {rank}, at least {RANKS:g} is wanted; {fix}")

    def after_validation(
        self, step: int, means: dict[str, float], *, rollout_reward: float | None, ode_reward: float | None, judged: float | None = None
    ) -> list[Alarm]:
        """Check a validation by its `Evaluation.means`; returns the alarms newly raised. The rewards are those of this step's rollouts and
        of the plain ODE on the same photos; `judged` is the mean of the judges' values, beside which `means` has `verifiable`."""
        out = [] if judged is None else self._follow(step, judged, means["verifiable"])
        if not self.first:
            self.first = dict(means)
            return out
        rose = means["reward"] > self.first["reward"] + 0.01
        for name, allowed in ERRORS.items():
            worse = means[name] - self.first[name]
            if rose and worse > allowed:
                out += self._raise(step, "hacking", f"reward rises while {name} grew by {worse:.3f}: raise the weight of that reward")
        grain, most = means["residual_grain"], max(1.5 * self.first["residual_grain"], GRAIN)
        if grain > most:
            out += self._raise(step, "collapse", f"residual grain is {grain:.2f}, at most {most:.2f} is wanted: lower --learning-rate")
        if rollout_reward is not None and ode_reward is not None and abs(rollout_reward - ode_reward) > GAP:
            text = f"rollouts score {rollout_reward:.3f}, the plain ODE {ode_reward:.3f} on the same photos: do not trust rollout reward"
            out += self._raise(step, "sde-ode gap", text)
        if not any(alarm.name in SERIOUS and step - alarm.step < self.quiet for alarm in self.raised):
            self.sound = step
        return out

    def _follow(self, step: int, judged: float, checked: float) -> list[Alarm]:
        """Whether the judge's reward rises over the window while the verifiable ones fall."""
        if judged != judged or checked != checked:  # NaN: nothing could be scored
            return []
        self.courses = [*self.courses, (judged, checked)][-WINDOW:]
        if len(self.courses) < WINDOW:
            return []
        judge, check = torch.tensor(self.courses, dtype=torch.float64).T
        time = torch.arange(WINDOW, dtype=torch.float64)
        up, down = rank_correlation(judge, time), rank_correlation(check, time)
        apart = rank_correlation(judge, check)
        rose, fell = float(judge[-1] - judge[0]), float(check[0] - check[-1])
        if not (rose > 0.01 and fell > 0.01 and up > -APART and down < APART and apart < APART):
            return []
        text = f"over {WINDOW} validations the judge's reward rose by {rose:.3f} while the verifiable rewards fell by {fell:.3f} "
        fix = "lower the judge's weight, and look at the pictures"
        return self._raise(step, "judge hacked", f"{text}(rank correlation {apart:.2f}): {fix}")
