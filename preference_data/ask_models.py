"""Have models judge pairs: every model, both orders, strict parsing, resumable; then how far they agree."""

import sys
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from rich.console import Console

from portraitkit.endpoint import Endpoint, Question, Reply
from portraitkit.errors import ImageError, UserError
from portraitkit.interrupt import Interruptible
from portraitkit.jsonl import append_line
from portraitkit.progress import progress_bar
from preference_data.annotate_config import AnnotateConfig
from preference_data.annotations import FOLDER, Judgement, append_judgement, read_judgements
from preference_data.contract import ORDERS, Order, Unreadable, prompt, read_answer, verdicts_in_files
from preference_data.report_agreement import print_agreement
from preference_data.schema import Pair

UNREADABLE = "unreadable.jsonl"
FROM = 20


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
    """What happened so far.

    Attributes:
        answers: model -> readable answers.
        unreadable: model -> answers that break the contract.
        first: model -> readable answers in which Image1 wins.
        incoherent: model -> readable answers whose better image has the lower average.
        cost: of answers that were not cached.
        skipped: pairs whose pictures cannot be read.
    """

    answers: Counter[str] = field(default_factory=Counter)
    unreadable: Counter[str] = field(default_factory=Counter)
    first: Counter[str] = field(default_factory=Counter)
    incoherent: Counter[str] = field(default_factory=Counter)
    cost: float = 0.0
    skipped: Counter[str] = field(default_factory=Counter)


def ask_models(config: AnnotateConfig, pairs: list[Pair]) -> int:
    """Ask; returns 0, 1 where answers were unreadable or the cost limit was reached, 130 or 143 when interrupted.

    Raises:
        EndpointError: the endpoint refused, or did not answer after all retries. What was answered is on disk.
    """
    assert config.endpoint is not None
    console, folder = Console(stderr=True, soft_wrap=True, highlight=False), config.data
    known = {(row.pair, row.annotator, row.order) for row in read_judgements(folder)[0]}
    orders = ORDERS if config.both_orders else ORDERS[:1]
    questions = [Showing(pair, model, order) for pair in pairs for model in config.model for order in orders]
    todo = [question for question in questions if (question.pair.id, question.model, question.order) not in known]
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
    tally, stopped = Tally(), ""
    with Interruptible() as interrupt, progress_bar(console) as bar:
        task = bar.add_task("asking", total=len(todo))
        pool, queue = ThreadPoolExecutor(config.workers), iter(todo)
        running: dict[Future[Reply | None], Showing] = {}
        try:
            while True:
                room = 0 if interrupt.requested or stopped else config.workers - len(running)
                for question in islice(queue, room):
                    running[pool.submit(_ask, endpoint, question, config.data)] = question
                if not running:
                    break
                for future in wait(running, timeout=0.2, return_when=FIRST_COMPLETED).done:
                    _record(future.result(), running.pop(future), config, tally)
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


def _record(reply: Reply | None, question: Showing, config: AnnotateConfig, tally: Tally) -> None:
    pair, model = question.pair, question.model
    if reply is None:
        tally.skipped[pair.id] += 1
        return
    if reply.text is None:
        raise EndpointError(f"{reply.error}; what was answered is kept, the same command goes on")
    if not reply.cached:
        tally.cost += (reply.tokens_in * config.price_in + reply.tokens_out * config.price_out) / 1e6
    answer = read_answer(reply.text)
    if isinstance(answer, Unreadable):
        tally.unreadable[model] += 1
        row = {"pair": pair.id, "annotator": model, "order": question.order, "reason": answer.reason, "text": answer.text}
        append_line(config.data / FOLDER / UNREADABLE, row)
        return
    tally.answers[model] += 1
    tally.first[model] += answer.better == 1
    tally.incoherent[model] += not answer.coherent
    verdicts, overall, scores = verdicts_in_files(answer, question.order)
    append_judgement(config.data, Judgement(pair.id, model, "annotator", question.order, verdicts, overall, scores, answer.reasoning))


def _why_stop(config: AnnotateConfig, tally: Tally) -> str:
    if config.max_cost is not None and tally.cost >= config.max_cost:
        return f"cost {tally.cost:.2f} has reached --max-cost {config.max_cost:g}; the same command with a higher one goes on"
    for model in config.model:
        bad, total = tally.unreadable[model], tally.unreadable[model] + tally.answers[model]
        if total >= FROM and bad > config.max_unreadable * total:
            return f"{bad} of {total} answers of {model} break the contract; see {FOLDER}/{UNREADABLE}"
    return ""


def _show(tally: Tally, config: AnnotateConfig, console: Console) -> None:
    for model in config.model:
        answers = tally.answers[model]
        if answers or tally.unreadable[model]:
            share = f", Image1 wins {tally.first[model] / answers:.1%}" if answers else ""
            odd = f", {tally.incoherent[model]} against their own scores" if tally.incoherent[model] else ""
            console.print(f"{model}: {answers} answers, {tally.unreadable[model]} unreadable{share}{odd}")
    if tally.skipped:
        console.print(f"{len(tally.skipped)} pairs have pictures that cannot be read: make-preferences lint {config.data}")
