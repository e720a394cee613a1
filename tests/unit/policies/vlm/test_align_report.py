"""The report's curves: the run's own, its floors, and the published run beside them."""

import re

import pytest

from policies.vlm.align.align_report import _plots, _published
from portraitkit.report.charts import Reference, Series, curve_svg

METRICS = [{"kind": "grpo", "step": step, "reward": -1 + step / 20} for step in range(1, 11)]
FLOORS = {"constant": 1.04, "validation_constant": 1.0, "shuffled_image": -0.5}


@pytest.mark.parametrize(
    ("task", "start", "end"), [("area", "0.5", "2.6"), ("area-rotated", "0.125", "2.3"), ("area-5-35", "0.15", "1.59")]
)
def test_the_published_run_stands_beside_the_same_task(task, start, end):
    published = _published({"task": task, "mode": "paper"})
    _, reads, svg = _plots(METRICS, FLOORS, published)[0]
    assert re.findall(r"published, real model: (start|end) ([\d.]+)<", svg) == [("start", start), ("end", end)]
    assert "dotted" in reads


@pytest.mark.parametrize(("task", "mode"), [("area", "fixed"), ("makeup", "paper"), ("mine", "paper")])
def test_other_tasks_and_rewards_have_no_published_curve(task, mode):
    assert _published({"task": task, "mode": mode}) == []
    _, reads, svg = _plots(METRICS, FLOORS, [])[0]
    assert "published" not in svg and "dotted" not in reads


def test_every_reward_curve_shows_both_floors():
    validation = [{"kind": "validation", "step": step, "greedy": step / 10} for step in range(3)]
    for title, reads, svg in _plots([*METRICS, *validation], FLOORS, [])[:2]:
        drawn = set(re.findall(r'stroke-dasharray="([\d., ]+)"', svg))
        assert len(drawn) == 2 and "dashed" in reads and "dash-dot" in reads, title
        assert svg.count("stroke-dasharray") == 2


def test_floors_and_references_lie_inside_the_plot():
    def highest_tick(svg):
        ticks = re.findall(r'<text[^>]*class="y"[^>]*>([^<]+)</text>', svg)
        return max(float(text.replace("\u2212", "-")) for text in ticks)

    line = Series(range(5), [0.0, 0.1, 0.2, 0.1, 0.3])
    assert highest_tick(curve_svg([line])) < 1
    assert highest_tick(curve_svg([line], floors=[2.0])) >= 1.5
    assert highest_tick(curve_svg([line], references=[Reference(3.0, "elsewhere")])) >= 2
