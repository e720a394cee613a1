"""One run of `align-vlm`: probe the reward, evaluate, train by TRL, evaluate again, report."""

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Column, Table

from policies.vlm.align.align_config import AlignVlmConfig
from policies.vlm.align.align_report import judge_words, write_align_card, write_probe_report, write_report
from policies.vlm.align.align_stages import check_enough, find_start, forget_stages, load_policy, train_stages
from policies.vlm.align.inputs import (
    check_all_lengths,
    check_groups,
    check_held_out,
    open_all_rows,
    prompt_of,
    readable_rows,
    weights_of,
    write_aside,
)
from policies.vlm.export_reward import with_reward_file
from policies.vlm.judge_probe import probe_judge
from policies.vlm.judged import AnswerJudge, UnitCheck, check_bare, close_judge, judge_function, open_judge, split_name
from policies.vlm.tasks import load_task
from portraitkit.files.jsonl import read_objects
from portraitkit.hub import open_repo, push_folder
from portraitkit.parallel import divided
from portraitkit.report.card import by_group, counted, value_of
from portraitkit.runs.checkpoint import check_processes
from portraitkit.runs.folder import SilentRunFolder, check_run_folder, open_run
from portraitkit.runs.terminal import Interruptible, counting
from portraitkit.stats import bootstrap_interval, paired_change
from portraitkit.vlm.evaluate import Evaluation, best_constant, compare, evaluate, probe, score_all
from portraitkit.vlm.generate import Decoding
from portraitkit.vlm.model import load_processor
from portraitkit.vlm.rows import Row, imitable
from portraitkit.vlm.stages import Interrupted, RunContext, start_run
from portraitkit.vlm.task import Task
from portraitkit.vlm.trainer_arguments import check_continued, taken
from portraitkit.vlm.trainers import check_vllm, part_names

QUARANTINE = "quarantine.jsonl"  # Rows that were set aside, with their reasons
PROBE_FILES = {"config.json", "environment.json", "metrics.jsonl", "probe.json", "judge_probe.json", "report.html", QUARANTINE}
"""What --probe leaves behind."""


def run_alignment(config: AlignVlmConfig, command: list[str]) -> int:
    """Align one policy and write the run folder; returns the exit code (0, or 130 / 143 when interrupted and saved)."""
    started = time.monotonic()
    task = load_task(config.task)
    if config.reward_file is not None:
        task = with_reward_file(task, config.reward_file)
    if config.reward is not None:
        split_name(config.reward, task)
    processes, console, grpo = start_run(config, config.folder)
    first = processes.is_main_process
    folder = Path(config.folder)
    if first:  # the others might find what the first one has opened since
        check_run_folder(
            folder,
            overwrite=config.overwrite or holds_probe_only(folder),
            resume=config.resume_from_checkpoint,
            report_to=list(config.report_to),
            needed={"--model": config.model, "--adapter": config.adapter, "--data": config.data},
        )
    start = find_start(folder, config.stages, config.resume_from_checkpoint)
    if differs := check_processes(start.checkpoint, processes.num_processes, allow_changed=config.allow_changed):
        console.print(differs, highlight=False)
    check_continued(config, config.adapter)
    longest = check_vllm(grpo, config.device) if "grpo" in config.stages else None
    judge = None if config.reward is None else open_judge(config.reward, task, data=config.data, device=config.device)
    processor = load_processor(config.model, max_pixels=config.max_pixels)
    rows, aside = readable_rows(config, open_all_rows(config, task, console), console, folder / QUARANTINE)
    check_enough(config, len(rows["train"]), processes.num_processes)
    check_held_out(config, rows["held_out"])
    parts = part_names(task, rows["train"][0], config.mode)
    if judge is not None:
        check_groups(config)
        check_bare(judge, [*rows["train"], *rows["held_out"]], config.data)
        config = replace(config, reward_weights=weights_of(config.reward_weights, [*parts, judge.name]))
    elif config.reward_weights:
        weights_of(config.reward_weights, parts)
    for stage in config.stages:
        used, every = len(rows["train"] if stage == "grpo" else imitable(rows["train"])), len(rows["train"])
        console.print(f"{stage}: {taken(stage, config, processes.num_processes, used)}", highlight=False)
        if used < every:
            partly = f"{stage}: {every - used} of {every} rows left out: they have no target and label only a part of what an answer says"
            console.print(partly, highlight=False)
    prompt = prompt_of(config, task)
    console.print(str(check_all_lengths(config, processor, rows, prompt, longest)), highlight=False)
    repo = open_repo(config.push_to_hub) if config.push_to_hub is not None and first else None
    model = load_policy(config)
    overwrite = config.overwrite or holds_probe_only(folder)
    run = open_run(config, command, overwrite=overwrite) if first else None
    processes.wait_for_everyone()
    with run or SilentRunFolder(folder) as run, Interruptible() as interrupt:
        if first:
            write_aside(folder / QUARANTINE, aside)
        sampling = (config.max_tokens, config.temperature, config.top_p, config.samples, config.generation_batch)
        decoding = Decoding(processor, prompt, *sampling)
        some, probing = rows["train"][: config.probe_rows], replace(decoding, samples=config.group_size, seed=config.seed)
        with counting(console, "probing the reward", len(some)) as advance:
            found = probe(model, probing, task, some, config.mode, advance=advance)

        def tell(name: str, probed: Any) -> None:
            console.print(probed.table())
            console.print(probed.advice(), highlight=False, soft_wrap=True)
            run.write_json(f"{name}.json", asdict(probed))

        tell("probe", found)
        if isinstance(judge, UnitCheck):
            console.print(f"--reward {config.reward}: no judge, a check of the action units that a reasoning names", highlight=False)
        if judge is not None:
            tell("judge_probe", probe_judge(judge, task, some, found.constant_answer, config.mode, config.reward_weights))
        if config.probe:
            if first:
                console.print(f"report: {write_probe_report(folder)}", highlight=False, soft_wrap=True)
            return 0
        answer, floor = best_constant(task, rows["held_out"], config.mode, candidates=[found.constant_answer])

        def measure(model: Any, when: str) -> Evaluation:
            with counting(console, f"held-out, {when} training", 3 * len(rows["held_out"])) as advance:
                return evaluate(model, decoding, task, rows["held_out"], config.mode, advance=advance)

        def validate(model: Any) -> dict[str, float]:
            answers = [answers[0] for answers in decoding.complete(model, rows["validation"], greedy=True)]
            return {"greedy": float(score_all(task, answers, rows["validation"], config.mode).mean())}

        before = measure(model, "before")
        validation_floor = best_constant(task, rows["validation"], config.mode)[1]
        floors = {"constant": floor, "validation_constant": validation_floor, "shuffled_image": float(before.blind.mean())}
        run.write_json("floors.json", floors)
        context = RunContext(config, run, processor, prompt, interrupt, console, processes, validate)
        if config.deepspeed is not None:
            model = None  # what DeepSpeed shares out must not be held here, whole
        try:
            more = [] if judge is None else [judge_function(judge, task, rows["train"], config.mode)]
            model = train_stages(context, config, task, rows["train"], model, start, more)
        except Interrupted:
            console.print(f"stopped and saved; go on with --resume-from-checkpoint latest --output-dir {config.folder}", highlight=False)
            return interrupt.exit_code
        after = measure(model, "after")
        summary = {
            "task": task.name,
            "mode": config.mode,
            "held_out": {
                **compare(before, after),
                "constant_floor": floor,
                "constant_answer": answer,
                "shuffled_image": float(before.blind.mean()),
                "shuffled_image_ci95": bootstrap_interval(before.blind),
                "shuffled_image_after": float(after.blind.mean()),
                "shuffled_image_after_ci95": bootstrap_interval(after.blind),
                "n": len(rows["held_out"]),
            },
            "metrics": {"before": before.metrics, "after": after.metrics},
            "seconds": time.monotonic() - started,
            "groups": by_group([row.columns for row in rows["held_out"]], before.greedy, after.greedy),
            "rows": {split: len(some) for split, some in rows.items()},
            "processes": processes.num_processes,
            "provenance": _provenance(rows),
            "prompt": "full" if prompt == task.prompt else "brief",
            "reward_file": config.reward_file and Path(config.reward_file).name,
            "seed": config.seed,
            "synthetic": config.data == "embedded",
        }
        if judge is not None:
            summary["judge"] = _judge_held_out(config, judge, rows["held_out"], before, after)
            close_judge(judge)
        if first:
            run.write_json("summary.json", summary)
            _write_answers(folder, rows["held_out"], before, after, task, config)
            write_report(folder)
            write_align_card(folder)
            forget_stages(config)
        processes.wait_for_everyone()
    _print_result(console, summary, folder)
    if judge is not None and first:
        said = judge_words(summary["judge"], [row for _, row in read_objects(folder / "metrics.jsonl")])
        console.print("\n".join(said), highlight=False, soft_wrap=True)
    if repo is not None:
        console.print(f"pushed: {push_folder(folder / 'model', repo)}", highlight=False)
    return 0


def holds_probe_only(folder: Path) -> bool:
    """Whether a folder holds a finished probe and nothing else: seconds of work, which a run does anyway before it trains."""
    if not (folder / "probe.json").is_file() or not {path.name for path in folder.iterdir()} <= PROBE_FILES:
        return False
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("probe") is True


def _judge_held_out(
    config: AlignVlmConfig, judge: AnswerJudge, rows: Sequence[Row], before: Evaluation, after: Evaluation
) -> dict[str, Any]:
    """What the judge says of the greedy answers before and after training, side by side; rows that it could not judge are counted."""
    pairs = [(row, [one.text, two.text]) for row, one, two in zip(rows, before.answers, after.answers, strict=True)]
    values = [(one, two) for one, two in divided(pairs, judge.values) if math.isfinite(one + two)]
    summary = {"reward": config.reward, "part": judge.name, "weight": config.reward_weights[-1], "n": len(values)}
    summary["unjudged"] = len(rows) - len(values)
    if len(values) > 1:
        one, two = torch.tensor(values).T
        change = paired_change(one, two)
        summary |= {"before": change.before, "after": change.after, "gain": change.gain, "gain_ci95": change.ci95}
    return summary


def _provenance(rows: Mapping[str, Sequence[Row]]) -> dict[str, str]:
    """What the rows of all splits say of licence and consent, counted; only what at least one of them says."""
    every = [row.columns for some in rows.values() for row in some]
    said = {name: [value_of(columns, name) for columns in every] for name in ("licence", "license", "consent")}
    return {name: counted(values) for name, values in said.items() if any(values)}


def _write_answers(folder: Path, rows: list[Row], before: Evaluation, after: Evaluation, task: Task, config: AlignVlmConfig) -> None:
    """Every held-out answer before and after, one JSON object a line, with the pictures beside."""
    (folder / "held_out").mkdir(exist_ok=True)
    lines = []
    for index, row in enumerate(rows):
        images = row.images()
        names = [f"held_out/{index:04d}{f'-{place}' if len(images) > 1 else ''}.png" for place in range(len(images))]
        for name, image in zip(names, images, strict=True):
            image.save(folder / name)
        line = {"images": names, "target": row.target}
        for when, evaluation in (("before", before), ("after", after)):
            line[when] = {
                "greedy": evaluation.answers[index].text,
                "reward": float(evaluation.greedy[index]),
                "parts": task.score(evaluation.answers[index].text, row.truth, config.mode).parts,
                "sampled_reward": float(evaluation.sampled[index]),
            }
        lines.append(json.dumps(line))
    (folder / "answers.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _print_result(console: Console, summary: dict[str, Any], folder: Path) -> None:
    held_out = summary["held_out"]
    figures = [Column(name, justify="right") for name in ("before", "after", "gain", "95 % interval")]
    table = Table("reward", *figures, title=f"{summary['task']}: {held_out['n']} held-out rows", title_justify="left")
    for name in ("greedy", "sampled"):
        row = held_out[name]
        low, high = row["gain_ci95"]
        table.add_row(name, f"{row['before']:.3f}", f"{row['after']:.3f}", f"{row['gain']:+.3f}", f"[{low:+.3f}, {high:+.3f}]")
    table.add_row("shuffled pictures", f"{held_out['shuffled_image']:.3f}", f"{held_out['shuffled_image_after']:.3f}", "", "")
    table.add_row("best constant answer", f"{held_out['constant_floor']:.3f}", "", "", "")
    console.print(table)
    console.print(f"report: {folder / 'report.html'}", highlight=False, soft_wrap=True)
