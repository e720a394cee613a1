"""One run of `align-vlm`: probe the reward, evaluate, train by TRL, evaluate again, report."""

import json
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from policies.vlm.align_card import by_group, provenance, write_align_card
from policies.vlm.align_config import AlignVlmConfig
from policies.vlm.align_inputs import check_all_lengths, open_all_rows, prompt_of
from policies.vlm.align_report import write_report
from policies.vlm.reward_file import with_reward_file
from policies.vlm.tasks import load_task
from portraitkit.config import config_to_dict
from portraitkit.errors import ConfigError
from portraitkit.hub import open_repo, push_folder
from portraitkit.interrupt import Interruptible
from portraitkit.runs import RunFolder, check_run_folder
from portraitkit.vlm.callbacks import Follow
from portraitkit.vlm.evaluate import Decoding, Evaluation, best_constant, compare, evaluate, finite, score_all
from portraitkit.vlm.generate import complete
from portraitkit.vlm.load import ASKED, attach_adapter, be_quiet, check_device, load_model, load_processor, merge_adapter
from portraitkit.vlm.probe import Probe, probe
from portraitkit.vlm.rewards import part_names
from portraitkit.vlm.rows import Row
from portraitkit.vlm.task import Task
from portraitkit.vlm.train import check_finite, find_checkpoint, make_grpo_trainer, make_sft_trainer
from portraitkit.vlm.trainer_arguments import check_continued, grpo_arguments, lora_arguments, sft_arguments
from portraitkit.vlm.vllm_engine import check_vllm


def run_alignment(config: AlignVlmConfig, command: list[str]) -> int:
    """Align one policy and write the run folder; returns the exit code (0, or 130 / 143 when interrupted and saved)."""
    console = Console(stderr=True)
    started = time.monotonic()
    be_quiet()
    task = load_task(config.task)
    if config.reward_file is not None:
        task = with_reward_file(task, config.reward_file)
    grpo, sft = (
        grpo_arguments(config, config.folder),
        sft_arguments(config, f"{config.folder}/sft"),
    )
    check_device(config.device)
    folder = Path(config.folder)
    check_run_folder(
        folder,
        overwrite=config.overwrite,
        resume=config.resume_from_checkpoint,
        report_to=list(config.report_to),
        needed={"--model": config.model, "--adapter": config.adapter, "--data": config.data},
    )
    check_continued(config, config.adapter)
    longest = check_vllm(grpo, config.device) if "grpo" in config.stages else None
    processor = load_processor(config.model, max_pixels=config.max_pixels)
    rows = open_all_rows(config, task, console)
    if config.reward_weights and len(config.reward_weights) != len(parts := part_names(task, rows["train"][0], config.mode)):
        raise ConfigError(f"--reward-weights has {len(config.reward_weights)} values for the parts {', '.join(parts)}: give one each")
    prompt = prompt_of(config, task)
    console.print(str(check_all_lengths(config, processor, rows, prompt, longest)), highlight=False)
    repo = open_repo(config.push_to_hub) if config.push_to_hub is not None else None
    with (
        RunFolder.open(
            folder,
            config_to_dict(config),
            command=command,
            seed=config.seed,
            overwrite=config.overwrite,
            resume=config.resume_from_checkpoint,
            allow_changed=config.allow_changed,
            report_to=list(config.report_to),
        ) as run,
        Interruptible() as interrupt,
    ):
        checkpoint = find_checkpoint(folder, config.resume_from_checkpoint)
        model = _load(config)
        decoding = Decoding(
            prompt,
            config.max_tokens,
            config.temperature,
            config.top_p,
            config.samples,
            config.generation_batch,
        )
        found = _probe(config, task, model, processor, rows["train"], decoding, console)
        run.write_json("probe.json", found.to_dict())
        if config.probe:
            return 0
        answer, floor = best_constant(task, rows["held_out"], config.mode, candidates=[found.constant_answer])
        measure = partial(_measure, config, task, processor, rows, decoding, console)
        before = measure(model, "before")
        validation_floor = best_constant(task, rows["validation"], config.mode)[1]
        run.write_json(
            "floors.json", {"constant": floor, "validation_constant": validation_floor, "shuffled_image": float(before.blind.mean())}
        )
        validate = partial(_validate, config, task, processor, rows["validation"], decoding)
        lora = lora_arguments(config) if config.adapter is None else None
        frozen = config.freeze_vision
        for stage in config.stages:
            steps = config.sft_steps if stage == "sft" else config.max_train_steps
            with _progress(console) as progress:
                bar = progress.add_task(stage, total=steps)
                follow = Follow(run, stage, interrupt, progress, bar, lambda: validate(trainer.model), config.validation_steps)  # noqa: B023
                if stage == "sft":
                    trainer = make_sft_trainer(model, processor, prompt, rows["train"], sft, follow, lora, frozen=frozen)
                else:
                    trainer = make_grpo_trainer(
                        model, processor, prompt, rows["train"], grpo, follow, task, config.mode, lora, frozen=frozen
                    )
                    run.truncate_metrics(_step_of(checkpoint)) if checkpoint else None
                trainer.train(resume_from_checkpoint=checkpoint if stage == "grpo" else None)
            if interrupt.requested:
                console.print(
                    f"stopped and saved; go on with --resume-from-checkpoint latest --output-dir {config.folder}", highlight=False
                )
                return interrupt.exit_code
            model, lora = trainer.model, None  # the next stage trains the same LoRA on: merged, its saved part would lack this one's
        check_finite(model)
        after = measure(model, "after")
        setattr(model.config, ASKED, "full" if prompt == task.prompt else "brief")
        model.save_pretrained(folder / "model", **({"selected_adapters": ["default"]} if config.rank else {}))  # TRL adds a reference
        processor.save_pretrained(folder / "model")
        summary = {
            "task": task.name,
            "mode": config.mode,
            "held_out": {
                **compare(before, after),
                "constant_floor": floor,
                "constant_answer": answer,
                "shuffled_image": float(before.blind.mean()),
                "shuffled_image_after": float(after.blind.mean()),
                "n": len(rows["held_out"]),
            },
            "metrics": {"before": finite(before.metrics), "after": finite(after.metrics)},
            "seconds": time.monotonic() - started,
            "groups": by_group(rows["held_out"], before.greedy, after.greedy),
            "rows": {split: len(some) for split, some in rows.items()},
            "provenance": provenance(rows),
            "prompt": "full" if prompt == task.prompt else "brief",
            "reward_file": config.reward_file and Path(config.reward_file).name,
            "seed": config.seed,
            "synthetic": config.data == "embedded",
        }
        run.write_json("summary.json", summary)
        _write_answers(folder, rows["held_out"], before, after, task, config)
        write_report(folder)
        write_align_card(folder)
    _print_result(console, summary, folder)
    if repo is not None:
        console.print(f"pushed: {push_folder(folder / 'model', repo)}", highlight=False)
    return 0


def _load(config: AlignVlmConfig) -> Any:
    model = load_model(config.model, dtype=config.dtype, device=config.device, freeze_vision=config.freeze_vision)
    if config.adapter is None:
        return model
    return attach_adapter(model, config.adapter) if config.rank else merge_adapter(model, config.adapter)


def _probe(config: AlignVlmConfig, task: Task, model: Any, processor: Any, rows: list[Row], decoding: Decoding, console: Console) -> Probe:
    some = rows[: config.probe_rows]
    with _progress(console) as progress:
        bar = progress.add_task("probing the reward", total=len(some))
        found = probe(
            model,
            processor,
            task,
            some,
            config.mode,
            replace(decoding, samples=config.group_size, seed=config.seed),
            advance=lambda count: progress.advance(bar, count),
        )
    console.print(found.table())
    return found


def _measure(
    config: AlignVlmConfig,
    task: Task,
    processor: Any,
    rows: dict[str, list[Row]],
    decoding: Decoding,
    console: Console,
    model: Any,
    when: str,
) -> Evaluation:
    with _progress(console) as progress:
        bar = progress.add_task(f"held-out, {when} training", total=3 * len(rows["held_out"]))
        return evaluate(model, processor, task, rows["held_out"], config.mode, decoding, advance=lambda count: progress.advance(bar, count))


def _validate(config: AlignVlmConfig, task: Task, processor: Any, rows: list[Row], decoding: Decoding, model: Any) -> dict[str, float]:
    answers = complete(model, processor, decoding.prompt, rows, max_tokens=decoding.max_tokens, batch_size=decoding.batch_size)
    return {"greedy": float(score_all(task, [group[0] for group in answers], rows, config.mode).mean())}


def _step_of(checkpoint: str | None) -> int:
    return int(Path(checkpoint).name.rpartition("-")[2]) if checkpoint else 0


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


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(), console=console
    )


def _print_result(console: Console, summary: dict[str, Any], folder: Path) -> None:
    held_out = summary["held_out"]
    table = Table(title=f"{summary['task']}: {held_out['n']} held-out rows", title_justify="left")
    for column in ("reward", "before", "after", "gain", "95 % interval"):
        table.add_column(column, justify="left" if column == "reward" else "right")
    for name in ("greedy", "sampled"):
        row = held_out[name]
        low, high = row["gain_ci95"]
        table.add_row(name, f"{row['before']:.3f}", f"{row['after']:.3f}", f"{row['gain']:+.3f}", f"[{low:+.3f}, {high:+.3f}]")
    table.add_row("shuffled pictures", f"{held_out['shuffled_image']:.3f}", f"{held_out['shuffled_image_after']:.3f}", "", "")
    table.add_row("best constant answer", f"{held_out['constant_floor']:.3f}", "", "", "")
    console.print(table)
    console.print(f"report: {folder / 'report.html'}", highlight=False)
