"""Early warnings of a run that goes wrong: hacking, collapse, an off-policy ratio, a widening gap between rollouts and the ODE."""

from dataclasses import dataclass, field

RATIO_TOLERANCE = 1e-3
SPREAD_FLOOR = 5e-4
GAP = 0.15


@dataclass(frozen=True)
class Alarm:
    """One warning: the training step, a stable name, and what was seen."""

    step: int
    name: str
    message: str


@dataclass
class Alarms:
    """Watches validations and training steps; each kind of alarm is raised at most once every `quiet` steps."""

    quiet: int = 20
    raised: list[Alarm] = field(default_factory=list)
    first: dict[str, float] = field(default_factory=dict)

    def _raise(self, step: int, name: str, message: str) -> list[Alarm]:
        last = [alarm.step for alarm in self.raised if alarm.name == name]
        if last and step - last[-1] < self.quiet:
            return []
        alarm = Alarm(step, name, message)
        self.raised.append(alarm)
        return [alarm]

    def after_step(self, step: int, *, spread: float, ratio_deviation: float, on_policy: bool, clip_range: float) -> list[Alarm]:
        """Check a training step.

        Args:
            step: training step.
            spread: mean standard deviation of the reward inside groups.
            ratio_deviation: largest |ratio - 1| of the step.
            on_policy: whether the policy had not moved since the rollout, so that the ratio must be 1.
            clip_range: of the surrogate.

        Returns:
            The alarms newly raised.
        """
        out: list[Alarm] = []
        if spread < SPREAD_FLOOR:
            out += self._raise(
                step,
                "spread",
                f"candidates of a group score alike (standard deviation {spread:.4f}): raise --eta or --group-size",
            )
        limit = RATIO_TOLERANCE * clip_range if on_policy else 50 * clip_range
        if ratio_deviation > max(limit, 1e-6):
            out += self._raise(
                step,
                "ratio",
                f"likelihood ratio off 1 by {ratio_deviation:.2e}: lower --learning-rate or --updates-per-step",
            )
        return out

    def after_validation(
        self, step: int, means: dict[str, float], *, rollout_reward: float | None, ode_reward: float | None
    ) -> list[Alarm]:
        """Check a validation.

        Args:
            step: training step.
            means: mean of every validated value, as `Evaluation.means`.
            rollout_reward: mean reward of this step's rollouts.
            ode_reward: mean reward of the plain ODE on the same photos.

        Returns:
            The alarms newly raised.
        """
        out: list[Alarm] = []
        if not self.first:
            self.first = dict(means)
            return out
        rose = means["reward"] > self.first["reward"] + 0.01
        for name, allowed in (("identity_distance", 0.05), ("texture_error", 0.08)):
            worse = means[name] - self.first[name]
            if rose and worse > allowed:
                out += self._raise(step, "hacking", f"reward rises while {name} grew by {worse:.3f}: raise the weight of that reward")
        grain = means["residual_grain"] / max(self.first["residual_grain"], 1e-6)
        if grain > 1.5:
            out += self._raise(step, "collapse", f"residual grain is {grain:.1f} times that of the base: lower --learning-rate")
        if rollout_reward is not None and ode_reward is not None and abs(rollout_reward - ode_reward) > GAP:
            out += self._raise(
                step,
                "sde-ode gap",
                f"rollouts score {rollout_reward:.3f}, the plain ODE {ode_reward:.3f} on the same photos: do not trust rollout reward",
            )
        return out
