"""The built-in metrics; `load_metrics` loads them and a user's file alike."""

from dataclasses import replace
from functools import cache
from pathlib import Path

from benchmarks.metric import Metric
from portraitkit.discover import load_object
from portraitkit.errors import ConfigError, nearest

BUILT_IN = """
    niqe:METRIC brisque:METRIC piqe:METRIC
    quality_nets:NIMA quality_nets:MUSIQ quality_nets:AVA quality_nets:MANIQA quality_nets:TOPIQ topiq_nr_face:METRIC
    quality_nets:CLIPIQA laion_aes:METRIC quality_nets:NRQM identity:IDENTITY_COSINE identity:ARCFACE
    rewards:BLEMISH_RESIDUAL rewards:TEXTURE_ERROR rewards:SDE_GRAIN rewards:LIP_DE
    fidelity:PSNR fidelity:SSIM quality_nets:LPIPS quality_nets:DISTS distribution:FID distribution:KID
    rewards:REWARD rewards:BLEMISH_REMOVAL rewards:TEXTURE rewards:SKIN_TONE rewards:IDENTITY rewards:CLARITY rewards:OWN_COLOR
"""
"""module:CONSTANT of this package, in the order of the tables."""


@cache
def built_in_metrics() -> dict[str, Metric]:
    """By name, in the order of the tables."""
    return {metric.name: metric for metric in (load_object(f"benchmarks.metrics.{place}") for place in BUILT_IN.split())}


def load_metrics(names: tuple[str, ...]) -> list[Metric]:
    """Metrics by name: a built-in one's, `judge:PATH[:FORM]`, or `my_file.py:METRIC`; `all`, or no name, stands for every built-in one.
    ConfigError: an unknown name, an object that is no metric, or two metrics of one name.
    WeightsError: no model where a judge is named."""
    built_in = built_in_metrics()
    chosen: dict[str, Metric] = {}
    for name in names or ("all",):
        if name == "all":
            chosen |= {key: metric for key, metric in built_in.items() if key not in chosen}
            continue
        metric = built_in[name] if name in built_in else _load(name, built_in)
        if metric.name in chosen and chosen[metric.name] != metric:
            raise ConfigError(f"--metrics: two metrics are called {metric.name}; rename yours")
        chosen[metric.name] = metric
    return list(chosen.values())


def _load(name: str, built_in: dict[str, Metric]) -> Metric:
    if name.startswith("judge:"):
        from benchmarks.metrics.judge import judge_metric

        return judge_metric(name)
    if ":" not in name:
        near = nearest(name, built_in)
        raise ConfigError(f"--metrics {name}: no such metric{near}; known: {', '.join(built_in)}, judge:PATH, or my_file.py:METRIC")
    metric = load_object(name)
    if not isinstance(metric, Metric):
        raise ConfigError(f"--metrics {name}: is a {type(metric).__name__}, not a benchmarks.metric.Metric")
    source = name.rpartition(":")[0]
    if source.endswith(".py"):  # what it computes changes with its text, and another file may have the same name in it
        metric = replace(metric, bundled=(*metric.bundled, Path(source).resolve()))
    return metric
