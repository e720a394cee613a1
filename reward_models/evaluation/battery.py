"""Everything that is measured of one judge: held-out pairs in both orders, exchanged pictures, hacks, stability."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from portraitkit.files.jsonl import read_json, read_objects, write_lines
from portraitkit.runs.shards import ShardFile
from portraitkit.runs.terminal import Interruptible, counting
from portraitkit.vlm.generate import Decoding
from portraitkit.vlm.model import load_model
from portraitkit.vlm.stages import Interrupted
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
from reward_models.evaluation.figures import all_figures, by_group, calibration, fit_thresholds, gain, majority, unreadable_share
from reward_models.evaluation.hacks import DISTURBANCES, HACKS, disturbed, hack_figures, hack_pairs, stability
from reward_models.judge.judge import load_judge
from reward_models.judge.pairs import Judged, JudgedPair, View, exchanged, judged_of
from reward_models.training.config import STAGES, RewardModelConfig

EXCHANGE = 7  # Seed by which pictures are exchanged among held-out pairs, the same for every run
DONE = "stage.json"  # What a stage's folder has once the stage is finished


@dataclass(frozen=True)
class Asking:
    """How a judge is asked, and where its answers are kept."""

    config: RewardModelConfig  # of the run
    processor: Any  # of the model
    view: View  # of the pairs
    console: Console  # for progress
    interrupt: Interruptible  # whether the run is to end is asked often
    write: bool = True  # whether this process writes files
    # takes the answers of this process's share, batch by batch; what is there is not asked again. None asks about everything
    own: ShardFile | None = None

    def stop(self) -> None:
        """Interrupted where the run is to end."""
        if self.interrupt.requested:
            raise Interrupted

    def load(self, source: str) -> Any:
        """A model to ask or train."""
        return load_model(source, dtype=self.config.dtype, device=self.config.device, freeze_vision=self.config.freeze_vision)

    def answer(self, source: str, pairs: Mapping[str, Sequence[JudgedPair]], folder: Path) -> None:
        """Ask a model about validation and held-out pairs, unless the folder has its answers."""
        missing = [split for split in ("validation", "held_out") if split in pairs and not (folder / f"{split}.jsonl").is_file()]
        model = self.load(source) if missing else None
        for split in missing:
            self.judge(model, pairs[split], f"{split.replace('_', '-')}, {folder.name}", folder / f"{split}.jsonl")

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


def summarise(
    folder: Path, config: RewardModelConfig, view: View, pairs: Mapping[str, Sequence[JudgedPair]], seconds: float
) -> dict[str, Any]:
    """`summary.json`, from the answers that a run's folder keeps: the figures of each stage (base, sft ...) on held-out pairs, what needs
    no eyes, and what `check_judge` and `ask_about_rewards` found of the last one."""

    def kept(name: str) -> list[Judged]:
        path = folder / f"{name}.jsonl"
        return read_judged(path, view) if path.is_file() else []

    truth, checks = pairs["held_out"], folder / "checks"
    stages = {stage: judged for stage in ("base", *STAGES) if (judged := kept(f"{stage}/held_out"))}
    last, blind = list(stages)[-1], kept("blind/held_out")
    thresholds = {stage: fit_thresholds(pairs.get("validation", []), kept(f"{stage}/validation")) for stage in stages}
    held_out: dict[str, Any] = {stage: all_figures(truth, judged, thresholds[stage]) for stage, judged in stages.items()}
    baselines = {"shuffled_images": all_figures(truth, kept("checks/exchanged"), {})}
    baselines |= {"blind": all_figures(truth, blind, {})} if blind else {}
    for name, figures in baselines.items():
        held_out[name] = {key: row["acc_average"] for key, row in figures.items()}
    held_out["majority"] = majority(truth)
    notes = {stage: read_json(path) for stage in STAGES if (path := folder / stage / DONE).is_file()}
    if "grpo" in stages:
        start = notes["grpo"]["from"]
        held_out["grpo_gain"] = gain(truth, stages["sft" if "sft" in stages else "base"], stages["grpo"])
        held_out["grpo_gain_over_its_start"] = {**gain(truth, stages[start], stages["grpo"]), "from": start}
    disturbances = {name: answers for name in DISTURBANCES if (answers := kept(f"checks/{name}"))}
    return {
        "held_out": held_out,
        "unreadable": {name: unreadable_share(judged) for name, judged in (stages | ({"blind": blind} if blind else {})).items()},
        "tie_thresholds": thresholds,
        "baselines": baselines,
        "hacks": hack_figures({name: answers for name in HACKS if (answers := kept(f"checks/{name}"))}),
        "stability": {name: stability(stages[last][: len(answers)], answers) for name, answers in disturbances.items()},
        "cues": cue_figures(checks),
        "clean_faces": clean_face_figures(checks),
        "rollouts": rollout_figures(checks),
        "groups": by_group(truth, stages[last]),
        "calibration": calibration(truth, stages[last]),
        "final": last,
        "seconds": seconds,
        "pairs": {split: len(some) for split, some in pairs.items()},
        "seed": config.seed,
        "synthetic": all(pair.synthetic for pair in truth),
        **({"stages": notes} if notes else {"benchmark": config.benchmark}),
    }
