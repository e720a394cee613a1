"""Any OpenAI-compatible chat endpoint over HTTP: time-outs, bounded retries with jitter, a rate limit, the key from the environment.

What goes wrong on the way is a value, never a made-up answer: a `Reply` has either a text or the reason why there is none.
"""

import base64
import io
import os
import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from PIL import Image

from portraitkit.errors import ConfigError

AGAIN = (408, 409, 425, 429, 500, 502, 503, 504)
LONGEST_WAIT = 60.0


@dataclass(frozen=True)
class Reply:
    """What came back.

    Attributes:
        text: the answer, or None.
        error: why there is none; empty if there is.
    """

    text: str | None
    error: str = ""


@dataclass(frozen=True)
class Question:
    """One user turn.

    Attributes:
        text: what is asked.
        image: shown before it, or None.
        system: a system turn before it; none if empty.
    """

    text: str
    image: Image.Image | None = None
    system: str = ""


class Endpoint:
    """A model behind `URL/chat/completions`.

    Args:
        url: up to and including the version, as in http://localhost:8000/v1.
        model: its name there.
        key_env: environment variable that holds the key; no key is sent if it is empty.
        timeout: seconds for one request.
        retries: further requests after one that failed for a reason that may pass.
        per_minute: most requests a minute; 0 = no limit.
        workers: requests under way at once.
        max_tokens: most tokens of an answer.

    Raises:
        ConfigError: the URL is none, or the variable is not set.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key_env: str = "",
        timeout: float = 120.0,
        retries: int = 3,
        per_minute: int = 0,
        workers: int = 4,
        max_tokens: int = 1024,
    ) -> None:
        import httpx

        if not url.startswith(("http://", "https://")) or not httpx.URL(url).host:
            raise ConfigError(f"endpoint {url}: must be a URL such as http://localhost:8000/v1")
        if not model:
            raise ConfigError(f"endpoint {url}: needs the model's name there")
        if key_env and not os.environ.get(key_env):
            raise ConfigError(f"endpoint {url}: the environment variable {key_env} is not set; put the key there")
        headers = {"Authorization": f"Bearer {os.environ[key_env]}"} if key_env else {}
        self.client = httpx.Client(timeout=timeout, headers=headers)
        self.url, self.model, self.retries, self.workers, self.max_tokens = url.rstrip("/"), model, retries, workers, max_tokens
        self._gap = 60 / per_minute if per_minute else 0.0
        self._next, self._lock = 0.0, threading.Lock()

    def ask(self, questions: Sequence[Question]) -> list[Reply]:
        """Greedy answers, in the order of the questions."""
        with ThreadPoolExecutor(max_workers=self.workers) as pool:
            return list(pool.map(self._ask_one, questions))

    def close(self) -> None:
        """Close the connections."""
        self.client.close()

    def _ask_one(self, question: Question) -> Reply:
        import httpx

        content: list[dict[str, Any]] = [{"type": "text", "text": question.text}]
        if question.image is not None:
            content.insert(0, {"type": "image_url", "image_url": {"url": _data_url(question.image)}})
        turns: list[dict[str, Any]] = [{"role": "user", "content": content}]
        if question.system:
            turns.insert(0, {"role": "system", "content": question.system})
        body = {"model": self.model, "messages": turns, "temperature": 0, "max_tokens": self.max_tokens}
        error = ""
        for attempt in range(self.retries + 1):
            self._wait_for_turn()
            wait = min(2.0**attempt, LONGEST_WAIT) * random.uniform(0.5, 1.0)
            try:
                response = self.client.post(f"{self.url}/chat/completions", json=body)
            except httpx.TimeoutException:
                error = "no answer in time"
            except httpx.HTTPError as failure:
                error = f"no connection ({failure})"
            else:
                if response.status_code == 200:
                    return _read(response)
                error = f"HTTP {response.status_code}: {response.text[:200]!r}"
                if response.status_code not in AGAIN:
                    break
                asked = response.headers.get("retry-after", "")
                wait = min(max(wait, float(asked) if asked.isdecimal() else 0), LONGEST_WAIT)
            if attempt < self.retries:
                time.sleep(wait)
        return Reply(None, error)

    def _wait_for_turn(self) -> None:
        if self._gap:
            with self._lock:
                now = time.monotonic()
                turn = max(now, self._next)
                self._next = turn + self._gap
            time.sleep(turn - now)


def _read(response: Any) -> Reply:
    try:
        text = response.json()["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError):
        return Reply(None, f"not a chat completion: {response.text[:200]!r}")
    return Reply(text) if isinstance(text, str) else Reply(None, "the answer has no text")


def _data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
