"""Everything that is measured of one judge: held-out pairs in both orders, exchanged pictures, hacks, stability."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from portraitkit.files.jsonl import read_objects, write_lines
from portraitkit.runs.shards import ShardFile
from portraitkit.runs.terminal import counting
from portraitkit.vlm.generate import Decoding
from reward_models.evaluation.as_reward import (
    CUES,
    FILE,
    UNTOUCHED,
    ask_about_clean_faces,
    ask_cues,
    clean_face_figures,
    cue_figures,
    rank_rollouts,
    rollout_figures,
)
from reward_models.evaluation.figures import all_figures, by_group, calibration, fit_thresholds, majority, unreadable_share
from reward_models.evaluation.hacks import DISTURBANCES, HACKS, disturbed, hack_figures, hack_pairs, stability
from reward_models.judge.judge import load_judge
from reward_models.judge.pairs import Judged, JudgedPair, View, exchanged, judged_of
from reward_models.training.config import RewardModelConfig

EXCHANGE = 7  # Seed by which pictures are exchanged among held-out pairs, the same for every run
KEPT = ("hacks", "stability", "cues", "clean_faces", "rollouts", "groups", "calibration")
"""Of `checks_summary`, what `summary.json` has as it is."""


@dataclass(frozen=True)
class Asking:
    """How a judge is asked, and where its answers are kept."""

    config: RewardModelConfig  # of the run
    processor: Any  # of the model
    view: View  # of the pairs
    console: Console  # for progress
    stop: Callable[[], None]  # called often; raises where the run is to end
    write: bool = True  # whether this process writes files
    # takes the answers of this process's share, batch by batch; what is there is not asked again. None asks about everything
    own: ShardFile | None = None

    def ask(self, model: Any, pairs: Sequence[JudgedPair], advance: Callable[[int], object] = lambda count: None) -> list[Judged]:
        """Greedy answers about each pair in both orders; several processes share the pairs."""
        decoding = Decoding(self.processor, self.view.prompt, self.config.max_tokens, batch_size=self.config.generation_batch)
        rows = [row for pair in pairs for row in self.view.rows(pair)]
        texts = [answers[0].text for answers in decoding.complete(model, rows, greedy=True, advance=advance)]
        return [judged_of(self.view, pair.id, both) for pair, both in zip(pairs, zip(texts[::2], texts[1::2], strict=True), strict=True)]

    def judge(self, model: Any, pairs: Sequence[JudgedPair], what: str, keep: Path) -> None:
        """Ask about all pairs, or those of the share; the answers go to `keep` as JSON lines, those of a share under its name to `own`."""
        if self.own is not None:
            return self._judge_share(self.own, model, pairs, what, f"{keep.parent.name}/{keep.name}")
        with counting(self.console, what, 2 * len(pairs), stop=self.stop) as advance:
            judged = self.ask(model, pairs, advance)
        if self.write:
            write_lines(keep, (one.to_row() for one in judged))

    def _judge_share(self, own: ShardFile, model: Any, pairs: Sequence[JudgedPair], what: str, name: str) -> None:
        """In the batches that one process would make: an answer may depend on what lies beside it in a batch."""
        batch = self.config.generation_batch
        step = batch // 2 if batch % 2 == 0 else batch  # a pair is two rows
        known = {row["start"] for row in own.rows if row["file"] == name}
        starts = own.shard.share(range(0, max(len(pairs), 1), step))  # a split without pairs has a file without answers
        todo = {start: pairs[start : start + step] for start in starts if start not in known}
        with counting(self.console, what, 2 * sum(map(len, todo.values())), stop=self.stop) as advance:
            for start, some in todo.items():
                own.append({"file": name, "start": start, "answers": [one.to_row() for one in self.ask(model, some, advance)]})


def ask_about_rewards(asking: Asking, model: str, pairs: Sequence[JudgedPair], folder: Path) -> None:
    """Ask the judge in the folder `model` what makes or unmakes a reward, once, in the process that writes files: cues on the first pairs,
    clean faces, groups of rollouts."""
    config, few = asking.config, asking.config.hack_cases // 2
    todo = {CUES: pairs[: config.stability_pairs // 2], UNTOUCHED: range(few), FILE: range(few)}
    todo = {name: some for name, some in todo.items() if some and not (folder / name).is_file()}
    if not todo or not asking.write:
        return
    judge = load_judge(model, device=config.device, dtype=config.dtype, batch_size=config.generation_batch)
    judge.settings = replace(judge.settings, shown=asking.view.shown, form=asking.view.form)
    if some := todo.get(CUES):
        with counting(asking.console, "cues and their controls", len(some), stop=asking.stop) as advance:
            ask_cues(judge, pairs[: len(some)], folder, advance=advance)
    if UNTOUCHED in todo:
        ask_about_clean_faces(judge, few, folder)
    if FILE in todo:
        with counting(asking.console, "ranking rollouts", few, stop=asking.stop) as advance:
            rank_rollouts(judge, folder, few, advance=advance)


def write_answers(folder: Path, shards: Sequence[Sequence[Mapping[str, Any]]]) -> None:
    """Write the answers of all shards to the files that one process writes, in its order."""
    rows = sorted((row for shard in shards for row in shard), key=lambda row: (row["file"], row["start"]))
    for name in dict.fromkeys(row["file"] for row in rows):
        write_lines(folder / name, (answer for row in rows if row["file"] == name for answer in row["answers"]))


def read_judged(path: Path, view: View) -> list[Judged]:
    """Answers that `Asking.judge` kept."""
    return [judged_of(view, row["pair"], (row["ab"], row["ba"])) for _, row in read_objects(path)]


def check_judge(asking: Asking, model: Any, pairs: Sequence[JudgedPair], folder: Path) -> None:
    """Ask the judge about exchanged pictures, hacks and disturbed pictures; what was answered already is not asked again."""
    config = asking.config

    def missing(name: str) -> bool:
        return not (folder / f"{name}.jsonl").is_file()

    if missing("exchanged"):
        asking.judge(model, exchanged(pairs, EXCHANGE), "pictures exchanged", folder / "exchanged.jsonl")
    if config.hack_cases and any(missing(name) for name in HACKS):
        with counting(asking.console, "making hacks", config.hack_cases) as advance:
            hacked = hack_pairs(config.hack_cases, advance=advance)
        for name, some in hacked.items():
            asking.judge(model, some, f"hack: {name.replace('_', ' ')}", folder / f"{name}.jsonl")
    some = pairs[: config.stability_pairs]
    for name in DISTURBANCES if some else ():
        if missing(name):
            asking.judge(model, disturbed(some, name), f"stability: {name.replace('_', ' ')}", folder / f"{name}.jsonl")


def checks_summary(folder: Path, view: View, pairs: Sequence[JudgedPair], judged: Sequence[Judged]) -> dict[str, Any]:
    """The figures of what `check_judge` and `ask_about_rewards` left, and `groups` and `calibration`."""

    def kept(name: str) -> list[Judged]:
        path = folder / f"{name}.jsonl"
        return read_judged(path, view) if path.is_file() else []

    disturbances = {name: kept(name) for name in DISTURBANCES}
    hacked = {name: answers for name in HACKS if (answers := kept(name))}
    return {
        "shuffled_images": all_figures(pairs, kept("exchanged"), {}),
        "hacks": hack_figures(hacked),
        "stability": {name: stability(judged[: len(answers)], answers) for name, answers in disturbances.items() if answers},
        "cues": cue_figures(folder),
        "clean_faces": clean_face_figures(folder),
        "rollouts": rollout_figures(folder),
        "groups": by_group(pairs, judged),
        "calibration": calibration(pairs, judged),
    }


def run_facts(
    config: RewardModelConfig, pairs: Mapping[str, Sequence[JudgedPair]], checks: Mapping[str, Any], final: str, seconds: float
) -> dict[str, Any]:
    """What `summary.json` has of every run: the checks as they are, the model that they are of, time, pairs and seed."""
    return {
        **{name: checks[name] for name in KEPT},
        "final": final,
        "seconds": seconds,
        "pairs": {split: len(some) for split, some in pairs.items()},
        "seed": config.seed,
        "synthetic": all(pair.synthetic for pair in pairs["held_out"]),
    }


def held_out_summary(
    pairs: Mapping[str, Sequence[JudgedPair]],
    stages: Mapping[str, Mapping[str, Sequence[Judged]]],
    checks: Mapping[str, Any],
    blind: Sequence[Judged] | None,
) -> dict[str, Any]:
    """The part of the summary on held-out pairs: figures of each stage, and what needs no eyes.

    Of the pairs and answers of the splits validation and held_out, by stage (base, sft ...), what `checks_summary` found, and the answers
    of the blind copy to exchanged pictures, it returns `held_out`, `unreadable`, `tie_thresholds` and `baselines` (all figures of the blind
    copy and of exchanged pictures).
    """
    validation = pairs.get("validation", [])
    thresholds = {name: fit_thresholds(validation, judged.get("validation", [])) for name, judged in stages.items()}
    held_out: dict[str, Any] = {
        name: all_figures(pairs["held_out"], judged["held_out"], thresholds[name]) for name, judged in stages.items()
    }
    baselines = {"shuffled_images": checks["shuffled_images"]}
    unreadable = {name: unreadable_share(judged["held_out"]) for name, judged in stages.items()}
    if blind is not None:
        baselines["blind"] = all_figures(pairs["held_out"], blind, {})
        unreadable["blind"] = unreadable_share(blind)
    for name, figures in baselines.items():
        held_out[name] = {key: row["acc_average"] for key, row in figures.items()}
    held_out["majority"] = majority(pairs["held_out"])
    return {"held_out": held_out, "unreadable": unreadable, "tie_thresholds": thresholds, "baselines": baselines}
