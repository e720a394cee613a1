"""The command `make-preferences annotate`: pairs to be judged, by people on the page or by models behind an endpoint.

Every model is asked in both orders and read strictly; the same command goes on where it was stopped.
"""

import sys
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from portraitkit.endpoint import Endpoint, Question, Reply
from portraitkit.errors import DataError, ImageError, UserError
from portraitkit.files.jsonl import append_line, read_json_lines
from portraitkit.runs.locks import only_writer
from portraitkit.runs.terminal import Interruptible, progress_bar
from preference_data.annotations import FOLDER, UNREADABLE, Judgement, append_judgement, file_of, print_agreement, read_judgements
from preference_data.commands.options import AnnotateConfig
from preference_data.contract import Unreadable, prompt, read_answer, verdicts_in_files
from preference_data.pair_set import read_pairs
from preference_data.schema import Pair
from preference_data.verdict import ORDERS, Order

ENOUGH = 20  # Answers of a model before the share of unreadable ones may stop it


class EndpointError(UserError):
    """The endpoint cannot be used: it refused, did not answer after all retries, or does not speak the protocol."""


@dataclass(frozen=True)
class Showing:
    """One pair shown to one model in one order."""

    pair: Pair
    model: str
    order: Order


@dataclass
class Tally:
    """What happened so far."""

    answers: Counter[str] = field(default_factory=Counter)  # model -> readable answers
    unreadable: Counter[str] = field(default_factory=Counter)  # model -> answers that break the contract
    first: Counter[str] = field(default_factory=Counter)  # model -> readable answers in which Image1 wins
    incoherent: Counter[str] = field(default_factory=Counter)  # model -> readable answers whose better image has the lower average
    cost: float = 0.0  # of answers that were not cached
    dearest: float | None = None  # of these; None before the first
    skipped: Counter[str] = field(default_factory=Counter)  # pairs whose pictures cannot be read


def annotate(config: AnnotateConfig) -> int:
    """Run; returns the exit code."""
    pairs = read_pairs(config.data)
    chosen = [pair for pair in pairs if config.pairs == "all" or pair.verdicts is None][: config.limit]
    if not chosen:
        raise DataError(f"{config.data}: all {len(pairs)} pairs have verdicts already; --pairs all takes them too")
    if config.web:
        from preference_data.web.app import serve_page

        return serve_page(config, chosen)
    return ask_models(config, chosen)


def ask_models(config: AnnotateConfig, pairs: list[Pair]) -> int:
    """Ask; returns 0, 1 where answers were unreadable or the cost limit was reached, 130 or 143 when interrupted."""
    with ExitStack() as stack:
        for model in config.model:
            stack.enter_context(only_writer(config.data / FOLDER, f".asking-{file_of(config.data, model).stem}"))
        return _ask_all(config, pairs)


def _ask_all(config: AnnotateConfig, pairs: list[Pair]) -> int:
    assert config.endpoint is not None
    console, folder = Console(stderr=True, soft_wrap=True, highlight=False), config.data
    answered = {(row.pair, row.annotator, row.order) for row in read_judgements(folder)[0]}
    orders = ORDERS if config.both_orders else ORDERS[:1]
    questions = [Showing(pair, model, order) for pair in pairs for model in config.model for order in orders]
    todo = [question for question in questions if (question.pair.id, question.model, question.order) not in answered]
    endpoint = Endpoint(
        config.endpoint,
        config.model[0],
        key_env=config.api_key_env,
        key_optional=True,
        cache=folder / FOLDER / ".cache",
        max_side=config.max_side,
        timeout=config.timeout,
        retries=config.retries,
        per_minute=config.requests_per_minute,
        temperature=config.temperature,
        max_tokens=config.max_tokens,
    )
    console.print(f"{len(questions)} questions, {len(questions) - len(todo)} answered before")
    tally, stopped, asked, path = Tally(), "", 0, folder / FOLDER / UNREADABLE
    kept = {_identifying(row) for row in read_json_lines(path, dict).rows} if path.is_file() else set()
    with Interruptible() as interrupt, progress_bar(console) as bar:
        task = bar.add_task("asking", total=len(todo))
        pool = ThreadPoolExecutor(config.workers)
        running: dict[Future[Reply | None], Showing] = {}
        try:
            while True:
                while not (interrupt.requested or stopped or asked == len(todo)) and _may_ask(config, tally, len(running)):
                    question, asked = todo[asked], asked + 1
                    running[pool.submit(_ask, endpoint, question, config.data)] = question
                if not running:
                    break
                for future in wait(running, timeout=0.2, return_when=FIRST_COMPLETED).done:
                    _record(future.result(), running.pop(future), config, tally, kept)
                    bar.update(task, advance=1, description=f"asking, cost {tally.cost:.2f}" if tally.cost else "asking")
                stopped = stopped or _why_stop(config, tally)
        finally:
            endpoint.close()
            pool.shutdown(wait=True, cancel_futures=True)
    _show(tally, config, console)
    print_agreement(read_judgements(folder)[0], pairs)
    if interrupt.requested:
        console.print("interrupted; give the same command again to go on")
        return interrupt.exit_code
    if not stopped and asked < len(todo):
        stopped = (
            f"cost {tally.cost:.2f}: the next answer might cost {tally.dearest or 0:.2f} and pass --max-cost {config.max_cost:g}; "
            "the same command goes on, with a new budget"
        )
    if stopped:
        print(f"stopped: {stopped}", file=sys.stderr)
    return 1 if stopped or tally.unreadable or tally.skipped else 0


def _ask(endpoint: Endpoint, question: Showing, folder: Path) -> Reply | None:
    """The reply; None where a picture cannot be read."""
    pair = question.pair
    files = (pair.input, pair.a, pair.b) if question.order == "ab" else (pair.input, pair.b, pair.a)
    try:
        return endpoint.ask_one(Question(prompt(), tuple(folder / file for file in files), model=question.model))
    except ImageError:
        return None


def _may_ask(config: AnnotateConfig, tally: Tally, running: int) -> bool:
    """Whether one more question can be asked: there is a worker for it, and it and those under way keep to --max-cost even if each of
    their answers is as dear as the dearest so far. Before anything is known of the price, one answer is waited for."""
    if running >= config.workers or config.max_cost is None:
        return running < config.workers
    if tally.dearest is None:
        return not running
    return tally.cost + (running + 1) * tally.dearest <= config.max_cost * (1 + 1e-9)


def _identifying(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple(str(row.get(key)) for key in ("pair", "annotator", "order", "text"))


def _record(reply: Reply | None, question: Showing, config: AnnotateConfig, tally: Tally, kept: set[tuple[str, ...]]) -> None:
    pair, model = question.pair, question.model
    if reply is None:
        tally.skipped[pair.id] += 1
        return
    if reply.text is None:
        raise EndpointError(f"{reply.error}; what was answered is kept, the same command goes on")
    if not reply.cached:
        cost = (reply.tokens_in * config.price_in + reply.tokens_out * config.price_out) / 1e6
        tally.cost += cost
        tally.dearest = max(tally.dearest or 0.0, cost)
    answer = read_answer(reply.text)
    if isinstance(answer, Unreadable):
        tally.unreadable[model] += 1
        row = {"pair": pair.id, "annotator": model, "order": question.order, "reason": answer.reason, "text": answer.text}
        if _identifying(row) not in kept:  # the answer may have come from the cache
            append_line(config.data / FOLDER / UNREADABLE, row)
            kept.add(_identifying(row))
        return
    tally.answers[model] += 1
    tally.first[model] += answer.better == "first"
    tally.incoherent[model] += not answer.coherent
    verdicts, overall, scores = verdicts_in_files(answer, question.order)
    append_judgement(config.data, Judgement(pair.id, model, "annotator", question.order, verdicts, overall, scores, answer.reasoning))


def _why_stop(config: AnnotateConfig, tally: Tally) -> str:
    if config.max_cost is not None and tally.dearest == 0:
        return f"the endpoint does not say how many tokens an answer took, so --max-cost {config.max_cost:g} cannot be kept; leave it out"
    for model in config.model:
        bad, total = tally.unreadable[model], tally.unreadable[model] + tally.answers[model]
        if total >= ENOUGH and bad > config.max_unreadable * total:
            return f"{bad} of {total} answers of {model} break the contract; see {FOLDER}/{UNREADABLE}"
    return ""


def _show(tally: Tally, config: AnnotateConfig, console: Console) -> None:
    for model in config.model:
        answers = tally.answers[model]
        if answers or tally.unreadable[model]:
            share = f", Image1 wins {tally.first[model] / answers:.1%}" if answers else ""
            odd = f", {tally.incoherent[model]} against their own scores" if tally.incoherent[model] else ""
            console.print(f"{model}: {answers} answers, {tally.unreadable[model]} unreadable{share}{odd}")
    if config.price_in or config.price_out:
        console.print(f"cost of this run: {tally.cost:.2f}")
    if tally.skipped:
        console.print(f"{len(tally.skipped)} pairs have pictures that cannot be read: make-preferences lint {config.data}")
