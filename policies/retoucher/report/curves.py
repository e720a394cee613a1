"""The curves of a report: validation by the plain ODE, rollout reward apart from it, and the signals of training."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from policies.retoucher.report.run_files import Run, number
from policies.retoucher.report.words import meaning_of
from portraitkit.report.curves import Series, curve_svg


@dataclass(frozen=True)
class Plot:
    """One panel: an SVG drawn by us, with its title and how to read it as plain text."""

    title: str
    reads: str
    svg: Markup


def validation_plots(run: Run, names: Sequence[str]) -> list[Plot]:
    out = []
    for name in names:
        points = [line for line in run.validation if name in line]
        ends = [line.get(f"{name}_ci95") or (None, None) for line in points]
        series = Series(
            [number(line.get("step")) for line in points],
            [number(line[name]) for line in points],
            [number(low) for low, _ in ends],
            [number(high) for _, high in ends],
            colour="accent",
        )
        better = "higher is better" if name in ("reward", "verifiable", *run.rewards) else "lower is better"
        meaning = meaning_of(name)
        svg = curve_svg([series], mark=_best_step(run), least_span=0.04)
        if svg:
            out.append(Plot(meaning.title, better, Markup(svg)))
    return out


def rollout_plot(run: Run) -> Plot | None:
    both = [line for line in run.validation if "rollout_reward" in line and "ode_reward" in line]
    rollout = Series(
        [number(line.get("step")) for line in run.train],
        [number(line.get("reward")) for line in run.train],
        kind="line",
        colour="muted",
    )
    ode = Series([number(line.get("step")) for line in both], [number(line["ode_reward"]) for line in both], kind="dots")
    svg = curve_svg([rollout, ode], least_span=0.04)
    return Plot("Rollout reward", "not progress", Markup(svg)) if svg else None


def judge_plots(run: Run) -> list[Plot]:
    """For each judge its reward and the verifiable rewards in one panel: at validation, and over the rollouts."""
    out = []
    for name in run.judges:
        for title, lines, key in (("at validation", run.validation, name), ("of the rollouts", run.train, f"parts/{name}")):
            both = [line for line in lines if key in line and "verifiable" in line]
            steps = [number(line.get("step")) for line in both]
            kind = "measured" if lines is run.validation else "line"
            judged = Series(steps, [number(line[key]) for line in both], kind=kind)
            checked = Series(steps, [number(line["verifiable"]) for line in both], kind=kind, colour="muted")
            svg = curve_svg([judged, checked], least_span=0.04)
            if svg:
                out.append(Plot(f"{meaning_of(name).title}, {title}", "coloured: the judge; grey: the verifiable rewards", Markup(svg)))
    return out


def training_plots(run: Run) -> list[Plot]:
    panels = [
        (
            "reward_std",
            "Spread in a group",
            "of the candidates' reward; at 0 nothing is learned",
            False,
        ),
        ("ratio_deviation", "Ratio deviation", "largest |ratio − 1|; rounding only while on policy", True),
        ("gradient_norm", "Gradient norm", "before clipping", False),
        ("loss", "Loss", "near 0 on policy: no sign of progress", False),
        ("clipped", "Clipped share", "of the ratios", False),
        ("judge_agreement", "Judge's agreement", "rank correlation with the verifiable rewards inside groups", False),
        ("kl", "KL to the base", "per latent dimension", False),
    ]
    out = []
    for key, title, reads, log in panels:
        values = [number(line.get(key)) for line in run.train]
        if key in ("clipped", "kl") and not any(math.isfinite(value) and value > 0 for value in values):
            continue
        svg = curve_svg([Series([number(line.get("step")) for line in run.train], values, kind="line", colour="muted")], log=log)
        if svg:
            out.append(Plot(title, reads, Markup(svg)))
    return out


def _best_step(run: Run) -> float | None:
    step = number(run.summary.get("best_step"))
    return step if math.isfinite(step) and run.config.get("keep_best", True) else None
