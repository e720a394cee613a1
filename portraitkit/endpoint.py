"""Any OpenAI-compatible chat endpoint: pictures, time-outs, bounded retries with jitter, a rate limit, usage, answers kept on disk.

What goes wrong on the way is a value, never a made-up answer: a `Reply` has either a text or the reason why there is none. The key comes
from the environment and stands in no message and no file.
"""

import base64
import hashlib
import io
import json
import os
import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

from portraitkit.errors import ConfigError
from portraitkit.files.atomic import write_text, writing

AGAIN = (408, 409, 425, 429, 500, 502, 503, 504)
LONGEST_WAIT = 60.0


@dataclass(frozen=True)
class Reply:
    """What came back."""

    text: str | None  # the answer, or None
    error: str = ""  # why there is none; empty if there is
    tokens_in: int = 0  # billed input tokens, 0 where the server does not say
    tokens_out: int = 0  # billed output tokens
    cached: bool = False  # whether the answer came from the disk
    # of each token its text and the log-probabilities of the likeliest texts in its place, where they were asked for and the server gives
    # them; answers from the disk have none
    choices: tuple[tuple[str, dict[str, float]], ...] = ()
    cut: bool = False  # the token limit ended the answer, where a model in this process says so


@dataclass(frozen=True)
class Question:
    """One user turn."""

    text: str  # what is asked
    pictures: tuple[Any, ...] = ()  # shown before it: files, or RGB tensors of shape 3 x h x w in [0, 1]
    system: str = ""  # a system turn before it; none if empty
    model: str = ""  # who is asked; the endpoint's if empty


class Pace:
    """Lets at most `per_minute` requests start within any minute; 0 is no limit."""

    def __init__(self, per_minute: int, stop: threading.Event) -> None:
        self.gap, self.stop = 60 / per_minute if per_minute else 0.0, stop
        self.next, self.lock = 0.0, threading.Lock()

    def wait(self) -> None:
        """Wait for this request's turn, or until `stop` is set."""
        if not self.gap:
            return
        with self.lock:
            now = time.monotonic()
            turn = max(now, self.next)
            self.next = turn + self.gap
        self.stop.wait(turn - now)


@dataclass
class Endpoint:
    """Models behind `URL/chat/completions`; safe to use from several threads.

    Raises:
        ConfigError: the URL is none, or the key is missing or cannot be one.
    """

    url: str  # up to and including the version, as in http://localhost:8000/v1
    model: str  # its name there
    _: KW_ONLY
    key_env: str = ""  # environment variable that holds the key; no key is sent if it is empty
    key_optional: bool = False  # send none where the variable is not set, instead of refusing
    cache: Path | None = None  # folder of answers, so that the same question is never paid twice; None keeps none
    max_side: int = 0  # pictures are made smaller to this longer side in pixels before they are sent; 0 sends them as they are
    timeout: float = 120.0  # seconds for one request
    retries: int = 3  # further requests after one that failed for a reason that may pass
    per_minute: int = 0  # most requests a minute; 0 = no limit
    workers: int = 4  # requests of one `ask` under way at once
    temperature: float = 0.0  # of sampling
    max_tokens: int = 1024  # most tokens of an answer
    top_logprobs: int = 0  # likeliest tokens to be told at each place of an answer; 0 asks for none

    def __post_init__(self) -> None:
        import httpx

        check_url(f"endpoint {self.url}", self.url)
        if not self.model:
            raise ConfigError(f"endpoint {self.url}: needs the model's name there")
        self._key = read_key(f"endpoint {self.url}", self.key_env, optional=self.key_optional)
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self.client = httpx.Client(timeout=self.timeout, headers=headers, follow_redirects=False)
        self.url = self.url.rstrip("/")
        self._stop = threading.Event()
        self._pace = Pace(self.per_minute, self._stop)

    def ask(self, questions: Sequence[Question]) -> list[Reply]:
        """Answers in the order of the questions; see `ask_one`."""
        with ThreadPoolExecutor(max_workers=self.workers) as pool:
            return list(pool.map(self.ask_one, questions))

    def ask_one(self, question: Question) -> Reply:
        """One answer, from the disk or from the model; ImageError: a picture cannot be read. RunFolderError: the answer cannot be kept."""
        body = self._body(question)
        if self.cache is None:
            return self._post(body)
        name = hashlib.sha256(json.dumps([self.url, body], sort_keys=True).encode()).hexdigest()
        path = self.cache / f"{name}.json"
        reply = _kept(path)
        if reply is None:
            reply = self._post(body)
            if reply.text is not None:
                with writing(path):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    write_text(path, json.dumps({"text": reply.text, "tokens_in": reply.tokens_in, "tokens_out": reply.tokens_out}))
        return reply

    def close(self) -> None:
        """Close the connections; requests that wait for their turn or for a retry give up."""
        self._stop.set()
        self.client.close()

    def _body(self, question: Question) -> dict[str, Any]:
        content: list[dict[str, Any]] = [
            {"type": "image_url", "image_url": {"url": data_url(path, self.max_side)}} for path in question.pictures
        ]
        turns: list[dict[str, Any]] = [{"role": "user", "content": [*content, {"type": "text", "text": question.text}]}]
        if question.system:
            turns.insert(0, {"role": "system", "content": question.system})
        model = question.model or self.model
        told = {"logprobs": True, "top_logprobs": self.top_logprobs} if self.top_logprobs else {}
        return {"model": model, "messages": turns, "temperature": self.temperature, "max_tokens": self.max_tokens, **told}

    def _post(self, body: dict[str, Any]) -> Reply:
        import httpx

        trouble = ""
        for attempt in range(self.retries + 1):
            self._pace.wait()
            if self._stop.is_set():
                return Reply(None, f"{self.url}: stopped")
            wait = 2.0 ** min(attempt, 10) * random.uniform(0.5, 1.5)
            try:
                response = self.client.post(f"{self.url}/chat/completions", json=body)
            except httpx.TimeoutException as error:
                trouble = f"no answer in time: {type(error).__name__}"
            except (httpx.HTTPError, RuntimeError) as error:  # RuntimeError: closed by another thread
                trouble = f"no connection: {type(error).__name__} {self._words(str(error))}".rstrip()
            else:
                if response.status_code == 200:
                    reply = _read(response)
                    if reply is not None:
                        return reply
                    trouble = f"not a chat completion with a text: {self._words(response.text)}"
                else:
                    trouble = f"HTTP {response.status_code}: {self._words(response.text)}"
                    if response.status_code not in AGAIN:
                        return Reply(None, f"{self.url}: model {body['model']}: {trouble}; check address, model and API key")
                    wait = max(wait, retry_after(response))
            if attempt < self.retries and self._stop.wait(min(wait, LONGEST_WAIT)):
                return Reply(None, f"{self.url}: stopped")
        tries = f"{self.retries + 1} {'tries' if self.retries else 'try'}"
        return Reply(None, f"{self.url}: no answer of model {body['model']} after {tries} ({trouble})")

    def _words(self, text: str) -> str:
        """The beginning of what a server says, on one line and without the key."""
        text = text.replace(self._key, "***") if self._key else text
        return " ".join(text[:200].split())


def data_url(picture: Any, max_side: int = 0) -> str:
    """A picture, a file or an RGB tensor, as a PNG data URL, upright and in sRGB, its longer side at most `max_side` pixels (0: as it is).
    ImageError: it cannot be read."""
    from portraitkit.pictures.images import read_image, to_pil, within

    pixels = read_image(picture).pixels if isinstance(picture, str | Path) else picture
    out = io.BytesIO()
    to_pil(within(pixels, max_side) if max_side else pixels).save(out, "PNG")
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"


def check_url(where: str, url: str, example: str = "http://localhost:8000/v1") -> None:
    """Refuse what is no URL of a server; ConfigError: it is none."""
    import httpx

    try:
        good = url.startswith(("http://", "https://")) and bool(httpx.URL(url).host)
    except httpx.InvalidURL:
        good = False
    if not good:
        raise ConfigError(f"{where}: must be a URL such as {example}")


def read_key(where: str, key_env: str, *, optional: bool) -> str:
    """The key in an environment variable, "" where there is none; `where` is what needs it, for messages.

    Raises:
        ConfigError: the key is missing or cannot be one.
    """
    key = os.environ.get(key_env, "").strip() if key_env else ""
    if key_env and not key and not optional:
        raise ConfigError(f"{where}: the environment variable {key_env} is not set; put the key there")
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(f"{where}: the environment variable {key_env} holds characters that no key has; put the key alone there")
    return key


def _read(response: Any) -> Reply | None:
    try:
        value = response.json()
        text = value["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    usage = value.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    if not isinstance(text, str):
        return None
    tokens = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
    return Reply(text, "", *tokens, choices=_choices(value["choices"][0].get("logprobs")))


def _choices(logprobs: Any) -> tuple[tuple[str, dict[str, float]], ...]:
    """What OpenAI calls `logprobs.content`; empty where there is none or it has another form."""
    try:
        return tuple(
            (str(one["token"]), {str(other["token"]): float(other["logprob"]) for other in one["top_logprobs"]})
            for one in logprobs["content"]
        )
    except (LookupError, TypeError, ValueError):
        return ()


def _count(tokens: Any) -> int:
    try:
        return int(tokens or 0)
    except (TypeError, ValueError, OverflowError):
        return 0


def retry_after(response: Any) -> float:
    """Seconds that a response asks to wait; 0 where it does not, or gives a date."""
    try:
        return max(0.0, float(response.headers.get("retry-after", "0")))
    except ValueError:
        return 0.0


def _kept(path: Path) -> Reply | None:
    """An answer that was kept; None where there is none or it was cut off."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        reply = Reply(stored["text"], "", stored["tokens_in"], stored["tokens_out"], cached=True)
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return reply if isinstance(reply.text, str) else None
