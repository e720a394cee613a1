"""Stage 3 of Facial-R1, the command `synthesize-emotion`: answers written with the truth in the prompt, kept if they repeat it exactly.

The folder: `train.jsonl`, accepted rows with the completion as `target`; `rejected.jsonl`, rows with every attempt and its errors;
`test.jsonl`, copied from beside the rows so that `align-vlm --stages sft --data` can be run on the folder; `images`, a link to the rows'
pictures; `summary.json`; `journal.jsonl`, one line a row that is done, by which an interrupted run goes on. A request that failed is no
rejection: the row stays open."""

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from policies.vlm.config import WRITERS, SynthesizeConfig
from policies.vlm.tasks.emotion import TASK, UNIT
from policies.vlm.tasks.emotion_metrics import read_answer
from portraitkit.config import config_to_dict, may_change
from portraitkit.endpoint import Endpoint, Question, Reply
from portraitkit.errors import ConfigError, DataError
from portraitkit.files.jsonl import append_line, read_json_lines, write_lines
from portraitkit.runs.folder import Maker, RunFolder, start_or_go_on
from portraitkit.runs.terminal import Interruptible, progress_bar
from portraitkit.vlm.rows import why_unreadable
from portraitkit.vlm.trainer_options import TuningOptions
from preference_data.emotion_rows import ACTION_UNITS, EMOTIONS, EmotionRow, read_emotion_rows

KNOWN = "\n\nWhat is known about this face: {facts}. Describe how this is seen in this face. {rules} Do not mention that you were told."
MENDED = "\n\nYour last answer was:\n{answer}\n\nIt cannot be used:\n{errors}\nWrite the whole answer again without these errors."

SPELT = r"one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|\w+teen|twenty|thirty|forty"
SPELT_UNIT = re.compile(rf"\b(?:AUs?|action units?)\W+(?:{SPELT})\b", re.IGNORECASE)


def write_prompt(row: EmotionRow, *, answer: str = "", errors: Sequence[str] = ()) -> str:
    """The task's instruction with the row's truth, and what was wrong with the last answer."""
    facts, rules = [], []
    if row.AUs is not None:
        named = ", ".join(f"{unit} {ACTION_UNITS[int(unit.removeprefix('AU'))]}" for unit in row.AUs)
        facts.append(f"the action units that show are {named}" if named else "no action unit shows")
        rules.append("Name exactly these action units and no other number." if row.AUs else "Name no action unit and no number.")
    else:
        rules.append("Write each action unit by itself, as (AU4), and no other number.")
    if row.labels:
        facts.append(f"the emotion is {row.labels[0]}")
        rules.append(f"The word inside <answer></answer> is {row.labels[0]}.")
    text = TASK.prompt + KNOWN.format(facts="; ".join(facts), rules=" ".join(rules))
    if errors:
        text += MENDED.format(answer=answer, errors="\n".join(f"- {error}" for error in errors))
    return text


def find_errors(row: EmotionRow, completion: str) -> list[str]:
    """Why a completion cannot be kept: empty if both tags stand, and units and emotion equal the truth where the row labels them.

    Stricter than the reward, which reads what it can: every number must be a unit by itself, and a unit may not be named by its FACS
    name alone unless it shows, so that a text that says more than the truth is no target to imitate.
    """
    read = read_answer(completion)
    if not read.readable:
        return ["the answer must be <think>one paragraph</think><answer>one word</answer> and nothing else"]
    errors = []
    if row.AUs is not None:
        truth = {int(unit.removeprefix("AU")) for unit in row.AUs}
        errors += [f"AU{unit} shows, but is not named" for unit in sorted(truth - read.units)]
        errors += [f"AU{unit} is named, but does not show" for unit in sorted(read.units - truth)]
        for unit in sorted(ACTION_UNITS.keys() - truth - read.units):
            if re.search(rf"\b{ACTION_UNITS[unit]}\b", read.reasoning, re.IGNORECASE):
                errors.append(f"{ACTION_UNITS[unit]!r} is AU{unit}, which does not show")
    else:
        errors += [f"AU{unit} is not in the list" for unit in sorted(read.units - ACTION_UNITS.keys())]
    errors += [f"{found!r}: each action unit must stand by itself, as (AU4), with no other number" for found in _loose(read.reasoning)]
    wanted = row.labels or EMOTIONS
    if read.emotion not in wanted:
        errors.append(f"the answer is {read.emotion!r}, but must be {' or '.join(wanted)}")
    if not read.reasoning:
        errors.append("<think></think> is empty")
    return errors


def _loose(text: str) -> Iterator[str]:
    """What holds a number that is not read as a unit, as "(AU6+12)", "AU100", "12", and units whose number is spelt."""
    rest = UNIT.sub(lambda unit: "U" * len(unit[0]), text)
    for word in re.finditer(r"\S+", rest):
        if any(character.isnumeric() and not character.isalpha() for character in word[0]):
            yield text[word.start() : word.end()][:40]
    yield from (spelt[0] for spelt in SPELT_UNIT.finditer(text))


TRAINED_WITH = ("device", "dtype", "sft_steps", "sft_batch", "sft_learning_rate", "max_tokens", "max_pixels")
"""Options that the fine-tuning takes over as they are, besides those of `TuningOptions`."""
Writer = Callable[[Sequence[str], Sequence[Path]], list[Reply]]


def run_synthesis(config: SynthesizeConfig, command: list[str]) -> int:
    """Synthesise, in one round or several; returns the exit code."""
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    if not config.endpoint:
        from portraitkit.vlm.model import check_device, model_path
        from portraitkit.vlm.task import asked_briefly

        if asked_briefly(config.model):
            raise ConfigError(f"--model {config.model}: was taught short answers and cannot reason in the full form; {WRITERS}")
        check_device(config.device)
        model_path(config.model)
        if config.deepspeed is not None:
            from portraitkit.vlm.trainer_arguments import deepspeed_file

            deepspeed_file(config.deepspeed)
    rows = read_emotion_rows(config.path)[: config.count or None]
    source = config.path.parent.resolve()
    for row in rows:
        if not (source / row.image).is_file():
            raise DataError(f"{config.path}: row {row.id}: image {row.image!r} must name a file beside {config.path.name}")
    if config.rounds > 1 and not ((source / "test.jsonl").is_file() and (source / "test.jsonl").stat().st_size):
        raise DataError(
            f"{source}: has no rows in test.jsonl; --rounds fine-tunes with align-vlm, which needs held-out rows beside {config.path.name}"
        )
    endpoint = None
    if config.endpoint:
        options = {"per_minute": config.requests_per_minute, "workers": config.workers, "max_tokens": config.max_tokens}
        options |= {"timeout": config.timeout, "retries": config.request_retries, "key_env": config.key_env}
        endpoint = Endpoint(config.endpoint, config.endpoint_model, **options)

    def ask(prompts: Sequence[str], pictures: Sequence[Path]) -> list[Reply]:
        assert endpoint is not None
        return endpoint.ask([Question(prompt, (path,)) for prompt, path in zip(prompts, pictures, strict=True)])

    maker, options = Maker("synthesize-emotion", "endpoint_model", "a synthesis", may_change(SynthesizeConfig)), config_to_dict(config)
    with start_or_go_on(config.output_dir, options, maker, command=command, seed=0, overwrite=config.overwrite) as run:
        done = _read_journal(run.path / "journal.jsonl")
        write_lines(run.path / "journal.jsonl", done.values())  # without a line that a killed process left unfinished
        if done:
            console.print(f"{run.path}: {len(done)} rows are done already, going on")
        trained: str | None = None
        for number in range(1, config.rounds + 1):
            if number > 1:
                if not any(record["accepted"] for record in done.values()):
                    break
                _finish(run, rows, done, source, config)
                writer = None  # frees the model's memory
                code, trained = _fine_tune(config, run.path, trained, number - 1)
                if code:
                    return code
            again = {key for key, record in done.items() if not record["accepted"] and record["attempts"] and record["round"] < number}
            todo = [row for row in rows if row.id not in done or row.id in again]
            writer = ask if endpoint else _local_writer(config, trained) if todo else None
            code = _work(config, run.path, todo, done, source, writer, number, console) if writer else 0
            if code:
                return code
        summary = _finish(run, rows, done, source, config)
    console.print(f"{config.output_dir}: {summary['accepted']} of {summary['rows']} rows accepted, {summary['rejected']} rejected")
    if endpoint is not None:
        endpoint.close()
    if not summary["accepted"]:
        raise DataError(
            f"{config.output_dir}: no answer was accepted; rejected.jsonl says why, a stronger model or more --retries may help"
        )
    return 0


def _work(
    config: SynthesizeConfig,
    folder: Path,
    todo: Sequence[EmotionRow],
    done: dict[str, dict[str, Any]],
    source: Path,
    writer: Writer,
    number: int,
    console: Console,
) -> int:
    """Work on rows in batches, journalling each; returns 0, or the exit code when interrupted."""
    unanswered = 0
    with Interruptible() as interrupt, progress_bar(console, elapsed=True) as bar:
        task = bar.add_task(f"round {number}", total=len(todo))
        for start in range(0, len(todo), config.batch_size):
            part = todo[start : start + config.batch_size]
            for row, record, error in _write(config, part, source, writer):
                if error:
                    unanswered += 1
                    console.print(f"{row.id}: left open, {error}")
                    if unanswered >= config.max_failures:
                        raise DataError(
                            f"{unanswered} rows in a row got no answer, the last: {error}; {len(done)} rows are done, the same command "
                            "goes on from there"
                        )
                    continue
                unanswered = 0
                done[row.id] = record | {"id": row.id, "round": number}
                append_line(folder / "journal.jsonl", done[row.id])
            accepted = sum(record["accepted"] for record in done.values())
            bar.update(task, advance=len(part), description=f"round {number}: {accepted} accepted of {len(done)}")
            if interrupt.requested:
                console.print(f"interrupted: {len(done)} rows are done, the same command goes on from there")
                return interrupt.exit_code
    return 0


def _write(
    config: SynthesizeConfig, part: Sequence[EmotionRow], source: Path, writer: Writer
) -> list[tuple[EmotionRow, dict[str, Any], str]]:
    """Each row of a batch with its record, and why it stays open, if it does."""
    records: dict[str, dict[str, Any]] = {}
    for row in part:
        missing = [name for name, value in (("action units", row.AUs), ("emotion", row.labels or None)) if value is None]
        lacks = len(missing) == 2 or (missing and config.need == "both")
        unlabelled = f"the row labels no {' and no '.join(missing)}: an answer cannot be checked exactly"
        reason = unlabelled if lacks else why_unreadable(source / row.image)  # why its answers cannot be checked; empty if they can
        records[row.id] = {"accepted": False, "reason": reason, "attempts": []}
    failures: dict[str, str] = {}
    for _ in range(config.retries + 1):
        asked = [row for row in part if not (records[row.id]["reason"] or records[row.id]["accepted"] or row.id in failures)]
        if not asked:
            break
        last = [[{"text": "", "errors": []}, *records[row.id]["attempts"]][-1] for row in asked]
        prompts = [write_prompt(row, answer=one["text"], errors=one["errors"]) for row, one in zip(asked, last, strict=True)]
        for row, reply in zip(asked, writer(prompts, [source / row.image for row in asked]), strict=True):
            if reply.text is None:
                failures[row.id] = reply.error
                continue
            errors = find_errors(row, reply.text)
            records[row.id]["attempts"].append({"text": reply.text, "errors": errors})
            records[row.id]["accepted"] = not errors
    return [(row, records[row.id], failures.get(row.id, "")) for row in part]


def _finish(
    run: RunFolder, rows: Sequence[EmotionRow], done: dict[str, dict[str, Any]], source: Path, config: SynthesizeConfig
) -> dict[str, Any]:
    """Write the accepted and the rejected rows, the test rows and the summary."""
    link = run.path / "images"
    if not link.is_symlink():
        link.symlink_to(source, target_is_directory=True)
    accepted, rejected = [], []
    for row in rows:
        record = done.get(row.id)
        if record is None:
            continue
        moved = replace(row, image=f"images/{row.image}")
        if record["accepted"]:
            text = record["attempts"][-1]["text"].strip()
            accepted.append(replace(moved, target=text, meta_info={**row.meta_info, "synthesised": {"round": record["round"]}}).to_dict())
        else:
            last = record["attempts"][-1]["errors"] if record["attempts"] else [record["reason"]]
            rejected.append({**moved.to_dict(), "reasons": last, "attempts": record["attempts"]})
    write_lines(run.path / "train.jsonl", accepted)
    write_lines(run.path / "rejected.jsonl", rejected)
    beside = source / "test.jsonl"
    if beside.is_file() and beside.stat().st_size and beside != config.path.resolve():  # make-preferences emotion may write an empty one
        write_lines(run.path / "test.jsonl", (replace(row, image=f"images/{row.image}").to_dict() for row in read_emotion_rows(beside)))
    kept = [done[row["id"]] for row in accepted]
    summary = {
        "rows": len(rows),
        "accepted": len(accepted),
        "rejected": len(rejected),
        "open": len(rows) - len(accepted) - len(rejected),
        "accepted_by_attempt": dict(sorted(Counter(len(record["attempts"]) for record in kept).items())),
        "accepted_by_round": dict(sorted(Counter(record["round"] for record in kept).items())),
        "errors_of_rejected": dict(Counter(reason for row in rejected for reason in row["reasons"]).most_common(20)),
        "writer": config.endpoint_model or config.model,
    }
    run.write_json("summary.json", summary)
    return summary


def _fine_tune(config: SynthesizeConfig, folder: Path, trained: str | None, number: int) -> tuple[int, str]:
    """Stage 1 on what was accepted, from the last one's result: align-vlm's exit code, and the new model's folder, or LoRA's."""
    output = folder / f"sft-{number}"
    model = str(output / "model")
    if (output / "summary.json").is_file():
        return 0, model
    options: dict[str, Any] = {
        "task": "emotion",
        "stages": ("sft",),
        "data": str(folder),
        "model": config.model if config.rank or trained is None else trained,
        "adapter": trained if config.rank else None,
        "prompt": "full",
        "output_dir": str(output),
        "train_rows": 0,
        "held_out_rows": 200,
        "overwrite": True,
        **{name: getattr(config, name) for name in (*TRAINED_WITH, *(field.name for field in fields(TuningOptions)))},
    }
    if config.deepspeed is not None:  # on all GPUs of this machine
        import torch

        words: list[str] = []
        for name, value in options.items():
            if value is not None and value is not False:
                values = () if value is True else value if isinstance(value, tuple) else (value,)
                words += [f"--{name.replace('_', '-')}", *map(str, values)]
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
        devices = str(max(torch.cuda.device_count(), 1))
        return subprocess.run([*launcher, devices, "-m", "policies.vlm.main", *words], check=False).returncode, model
    from policies.vlm.align.align import run_alignment
    from policies.vlm.align.align_config import AlignVlmConfig

    return run_alignment(AlignVlmConfig(**options), sys.argv), model


def _local_writer(config: SynthesizeConfig, trained: str | None) -> Writer:
    from portraitkit.vlm.generate import complete
    from portraitkit.vlm.model import be_quiet, load_model, load_processor, merge_adapter
    from portraitkit.vlm.rows import Row

    be_quiet()
    source = config.model if config.rank or trained is None else trained
    processor = load_processor(source, max_pixels=config.max_pixels)
    model = load_model(source, dtype=config.dtype, device=config.device)
    if config.rank and trained is not None:
        model = merge_adapter(model, trained)

    def write(prompts: Sequence[str], pictures: Sequence[Path]) -> list[Reply]:
        rows = [Row((path,), None, "", {}) for path in pictures]
        groups = complete(model, processor, prompts, rows, max_tokens=config.max_tokens, batch_size=config.batch_size)
        return [Reply(group[0].text) for group in groups]

    return write


def _read_journal(path: Path) -> dict[str, dict[str, Any]]:
    """Records by id, the last one of each; a line that a killed process left unfinished is dropped."""
    return {record["id"]: record for record in read_json_lines(path, dict).rows} if path.is_file() else {}
