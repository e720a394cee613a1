"""The three stages of a judge's training, each from the newest finished stage before it, each leaving a model and a note in its folder."""

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from portraitkit.files.atomic import write_text
from portraitkit.files.jsonl import read_objects, write_lines
from portraitkit.runs.terminal import counting
from portraitkit.vlm.generate import Completion, Decoding
from portraitkit.vlm.model import load_model
from portraitkit.vlm.rows import Row
from portraitkit.vlm.stages import RunContext, Stage, newest_checkpoint, release, store, train
from portraitkit.vlm.task import Mode, Score, Task
from portraitkit.vlm.trainer_arguments import lora_arguments, taken
from preference_data.contract import Unreadable
from preference_data.verdict import EXCHANGED, ORDERS, Shown, shown_as
from reward_models.evaluation.battery import DONE, Asking, read_judged
from reward_models.evaluation.figures import NAMES, truth_of
from reward_models.judge import preference_task
from reward_models.judge.coherence import Coherence, deterministic
from reward_models.judge.pairs import Judged, JudgedPair, View, exchanged
from reward_models.judge.preference_task import Preference, said, verdicts_shown
from reward_models.judge.settings import JudgeSettings, write_settings
from reward_models.training.config import STAGES


@dataclass(frozen=True, kw_only=True)
class Training(Asking):
    """What the judge's stages share."""

    context: RunContext  # of the run
    pairs: dict[str, list[JudgedPair]]  # split -> pairs
    coherence: Coherence  # of an answer

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.context.run.path

    def say(self, text: str) -> None:
        """A line for the user."""
        self.console.print(text, highlight=False, markup=False)

    def wait(self) -> None:
        """Until all processes are here."""
        self.context.processes.wait_for_everyone()


def fit(context: RunContext, name: str, start: str, rows: Sequence[Row], *, steps: int, task: Task | None = None) -> None:
    """Train a stored model and leave the whole result in `NAME/model`; goes on from the stage's newest complete checkpoint."""
    options, folder = context.options, context.run.path / name
    torch.manual_seed(options.seed)
    model = load_model(start, dtype=options.dtype, device=options.device, freeze_vision=options.freeze_vision)
    stage = Stage(name, folder, rows, steps, task, validated=name != "blind")
    trainer = train(context, stage, model, lora_arguments(options), newest_checkpoint(folder))
    store(context, trainer, folder / "model", base=start)
    del trainer, model
    release()
    if context.processes.is_main_process:
        for path in folder.glob("checkpoint-*"):
            shutil.rmtree(path)


def is_done(folder: Path, stage: str) -> bool:
    """Whether a stage of this run is finished."""
    return (folder / stage / DONE).is_file()


def newest(folder: Path, model: str, before: str | None = None) -> tuple[str, str]:
    """(stage, model) to go on from: the newest finished stage, before `before` if given; ("base", the model) where there is none."""
    earlier = STAGES[: STAGES.index(before)] if before in STAGES else STAGES
    for stage in reversed(earlier):
        if is_done(folder, stage):
            return stage, str(folder / stage / "model")
    return "base", model


def forget(folder: Path, stage: str) -> None:
    """Remove what a stage, those after it, and the checks of the final judge left."""
    for name in (*STAGES[STAGES.index(stage) :], "checks"):
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)


def run_stage(training: Training, stage: str) -> None:
    """Run one stage, or go on with it."""
    source, start = newest(training.folder, training.config.source, stage)
    folder = training.folder / stage
    folder.mkdir(exist_ok=True)
    training.say(f"{stage}: from {source}")
    note = {"sft": _imitate, "reject": _imitate_own, "grpo": _reinforce}[stage](training, start, folder)
    training.wait()
    if training.write:
        write_settings(folder / "model", JudgeSettings(training.view.shown, training.view.form))
        write_text(folder / DONE, json.dumps({"from": source, **note}, indent=2) + "\n")
    training.wait()


def train_blind(training: Training) -> None:
    """The same SFT on pairs whose pictures were exchanged, then asked about exchanged pictures: what needs no eyes."""
    folder = training.folder / "blind"
    if (folder / "held_out.jsonl").is_file():
        return
    folder.mkdir(exist_ok=True)
    pairs = exchanged(training.pairs["train"][: training.config.sft_pairs or None], training.config.seed)
    rows, _ = imitation_rows(training, pairs)
    fit(training.context, "blind", training.config.source, rows, steps=training.config.sft_steps)
    training.wait()
    asked = exchanged(training.pairs["held_out"], training.config.seed + 1)
    training.judge(training.load(str(folder / "model")), asked, "held-out, blind copy", folder / "held_out.jsonl")
    training.wait()
    if training.write:
        shutil.rmtree(folder / "model")


def imitation_rows(training: Training, pairs: Sequence[JudgedPair]) -> tuple[list[Row], int]:
    """Both orders of each pair with the right answer as target, and how many pairs are left out: no overall winner, or a choice that
    contradicts the scores."""
    rows = [row for pair in pairs if pair.overall in ("a", "b") for row in training.view.rows(pair)]
    rows = [row for row in rows if row.columns["coherent"]]
    return rows, len(pairs) - len({row.columns["pair"] for row in rows})


def _imitate(training: Training, start: str, folder: Path) -> dict[str, Any]:
    config = training.config
    rows, left_out = imitation_rows(training, training.pairs["train"][: config.sft_pairs or None])
    amount = taken("sft", config, training.context.processes.num_processes, len(rows))
    training.say(f"sft: {amount}, both orders; {left_out} pairs left out")
    fit(training.context, "sft", start, rows, steps=config.sft_steps)
    return {"rows": len(rows), "left_out": left_out}


def _imitate_own(training: Training, start: str, folder: Path) -> dict[str, Any]:
    """Sample trajectories, keep the right and coherent ones, imitate them."""
    config, view = training.config, training.view
    pool = (training.pairs["train"][config.sft_pairs :] if config.sft_pairs else []) or training.pairs["train"]
    pairs = [pair for pair in pool if pair.overall in ("a", "b")][: config.reject_pairs or None]
    rows = {(row.columns["pair"], row.columns["order"]): row for pair in pairs for row in view.rows(pair)}
    kept_file, note_file = folder / "kept.jsonl", folder / "kept.json"
    if not note_file.is_file():
        asked = list(rows.values())
        sampling = (config.max_tokens, config.temperature, config.top_p, config.reject_samples, config.generation_batch, config.seed)
        decoding, what = Decoding(training.processor, view.prompt, *sampling), f"sampling {config.reject_samples} trajectories"
        with counting(training.console, what, len(asked), stop=training.stop) as advance:
            trajectories = decoding.complete(training.load(start), asked, advance=advance)
        kept, note = keep(asked, trajectories, view, training.coherence, least=config.reject_dimensions, most=config.reject_keep)
        if training.write:
            write_lines(kept_file, ({"pair": row.columns["pair"], "order": row.columns["order"], "text": row.target} for row in kept))
            write_text(note_file, json.dumps(note, indent=2) + "\n")
        training.wait()
    note = json.loads(note_file.read_text(encoding="utf-8"))
    chosen = [replace(rows[row["pair"], row["order"]], target=row["text"]) for _, row in read_objects(kept_file)]
    training.say(
        f"reject: {note['keep_rate']:.0%} of {note['sampled']} trajectories kept ({note['rows_with_one']:.0%} of the rows have one); "
        + ", ".join(f"{reason} {share:.0%}" for reason, share in note["shares"].items() if reason != "kept")
    )
    if chosen:
        training.say(f"reject: {taken('reject', config, training.context.processes.num_processes, len(chosen), config.reject_steps)}")
        fit(training.context, "reject", start, chosen, steps=config.reject_steps)
    else:
        _pass_on(training, start, folder, "no trajectory was right and coherent")
    return note


def still_wrong(pair: JudgedPair, judged: Judged, which: str) -> bool:
    """Whether a judge is wrong about a pair in one order or the other: overall, or (which = dimensions) anywhere.

    An answer that cannot be read is wrong. Pairs without an overall winner are never wrong overall.
    """
    names = NAMES if which == "dimensions" else ("overall",)
    known = {name: truth for name in names if (truth := truth_of(pair, name)) is not None and (name, truth) != ("overall", "tie")}
    return which == "all" or any(said != truth for name, truth in known.items() for said in judged.verdicts(name))


def _reinforce(training: Training, start: str, folder: Path) -> dict[str, Any]:
    """GRPO on the pairs that are still wrong or change with the order."""
    config, view = training.config, training.view
    kept, pairs = folder / "train.jsonl", training.pairs["train"]
    if not kept.is_file():
        training.judge(training.load(start), pairs, "what is still wrong", kept)
        training.wait()
    judged = read_judged(kept, view)
    chosen = [(pair, one) for pair, one in zip(pairs, judged, strict=True) if still_wrong(pair, one, config.grpo_pairs)]
    note = {"pairs": len(chosen), "of": len(pairs)}
    which = {"overall": "are wrong in one order or the other", "dimensions": "are wrong in a dimension", "all": "are trained on"}
    training.say(f"grpo: {len(chosen)} of {len(pairs)} pairs {which[config.grpo_pairs]}")
    if not chosen:
        _pass_on(training, start, folder, "no pair is left to learn from")
        return note
    rows = []
    for pair, one in chosen:
        forward, backward = one.verdicts("overall")
        for row, order, other in zip(view.rows(pair), ORDERS, (backward, forward), strict=True):
            shown = None if other is None else shown_as(other, order)
            truth = Asked(row.truth.overall, row.truth.verdicts, row.truth.scores, shown)
            rows.append(replace(row, truth=truth))
    training.say(f"grpo: {taken('grpo', config, training.context.processes.num_processes, len(rows))}")
    least = config.prompts_per_step * training.context.processes.num_processes
    rows = rows * -(-least // len(rows))  # an update never waits for more prompts than there are
    task = judge_task(view, training.coherence, config.consistency_weight)
    fit(training.context, "grpo", start, rows, steps=config.max_train_steps, task=task)
    return note


def _pass_on(training: Training, start: str, folder: Path, why: str) -> None:
    training.say(f"{folder.name}: {why}; the model is passed on as it is")
    if training.write:
        model = training.load(start)
        with torch.no_grad():
            model.save_pretrained(folder / "model")
        training.processor.save_pretrained(folder / "model")
    training.wait()


@dataclass(frozen=True)
class Asked(Preference):
    """A truth, and what the judge said when the pair was shown in the other order."""

    other: Shown | None = None  # its overall verdict in this row's order; None where that answer could not be read


def judge_task(view: View, coherence: Coherence = deterministic, consistency_weight: float = 0.0) -> Task:
    """The task that GRPO trains a judge on: `preference` with a chosen check of coherence and the other order's verdict.

    Parts in the mode `fixed`: form .5, coherence up to .5, the right overall choice 1, the share of right dimensions 1, and with a weight
    above 0 the position consistency: the weight where the overall choice names the same file as the greedy answer to the other order did,
    asked once before the stage. It rewards agreement with an answer that may be wrong: keep its weight well below the 1 of a right choice.
    An answer in another form than the view's cannot be read.
    """

    def score(completion: str, truth: Preference, mode: Mode) -> Score:
        answer = view.read(completion)
        found = preference_task.score("" if isinstance(answer, Unreadable) else completion, truth, mode)
        parts = dict(found.parts)
        if not isinstance(answer, Unreadable):
            parts["coherence"] = (0.5 if mode == "fixed" else 1.0) * coherence(answer)
        if consistency_weight:
            other = truth.other if isinstance(truth, Asked) else None
            same = not isinstance(answer, Unreadable) and preference_task.said(answer, "overall") == other
            parts["consistency"] = None if other is None else consistency_weight * same
        return Score(sum(value for value in parts.values() if value is not None), parts, found.parsed)

    def perfect(truth: Preference) -> str:
        return view.write(preference_task.answer_of(truth))

    def most(truth: Preference, mode: Mode) -> float:
        other = truth.other if isinstance(truth, Asked) else None
        at_odds = truth.overall in ("first", "second") and other != truth.overall  # being right is worth more
        return preference_task.most(truth, mode) + (0.0 if other is None or at_odds else consistency_weight)

    base = preference_task.TASK
    top = {mode: (low, high + consistency_weight) for mode, (low, high) in base.ranges.items()}
    return Task("preference", view.prompt, base.read_truth, score, top, perfect, metrics=base.metrics, most=most)


# ---- which sampled trajectories are worth imitating: right overall, no dimension the wrong way round, coherent

ENOUGH = 0.5  # Of an NLI model's probability


def verdict_on(text: str, truth: Preference, view: View, coherence: Coherence, least: float) -> tuple[str, float]:
    """(why a trajectory is kept or not, the share of its dimensions that are right).

    The rule: it can be read; its overall choice is right; no dimension's winner is named as the loser; at least the share `least` of the
    known dimensions is right, ties included; its reasoning is coherent with its answer, by .5 or more. Why is "kept", or the first that
    fails. The truth is in the order in which the pair was shown; a pair without an overall winner teaches nothing here.
    """
    answer = view.read(text)
    if isinstance(answer, Unreadable):
        return "unreadable", 0.0
    verdicts = verdicts_shown(answer)
    hits = [verdicts[name] == verdict for name, verdict in truth.verdicts.items()]
    share = sum(hits) / len(hits) if hits else 1.0
    if said(answer, "overall") != truth.overall:
        return "overall wrong", share
    if any(verdict != "tie" and verdicts[name] == EXCHANGED[verdict] for name, verdict in truth.verdicts.items()):
        return "a dimension reversed", share
    if share < least - 1e-9:
        return "too few dimensions", share
    if coherence(answer) < ENOUGH:
        return "incoherent", share
    return "kept", share


def keep(
    rows: Sequence[Row], trajectories: Sequence[Sequence[Completion]], view: View, coherence: Coherence, *, least: float, most: int
) -> tuple[list[Row], dict[str, Any]]:
    """Sort the trajectories of each row by `verdict_on`, and keep at most `most` different ones of a row, those with the most right
    dimensions first.

    Returns:
        The rows with a trajectory that was kept as target; and of all trajectories the share of each reason, "kept" among them before
        equal ones of a row are counted once, of how many, and in how many rows.
    """
    kept: list[Row] = []
    reasons, sampled, answered = Counter[str](), 0, 0
    for row, some in zip(rows, trajectories, strict=True):
        good: dict[str, float] = {}
        for one in some:
            why, share = verdict_on(one.text, row.truth, view, coherence, least)
            reasons[why] += 1
            if why == "kept":
                good.setdefault(one.text, share)
        sampled, answered = sampled + len(some), answered + bool(good)
        best = sorted(good, key=lambda text: -good[text])[:most]
        kept += [Row(row.pictures, row.truth, text, row.columns) for text in best]
    shares = {reason: count / max(sampled, 1) for reason, count in sorted(reasons.items())}
    note = {"sampled": sampled, "shares": shares, "keep_rate": shares.get("kept", 0.0)}
    return kept, note | {"rows_with_one": answered / max(len(rows), 1), "imitated": len(kept)}
