"""One OpenAI-compatible endpoint: requests with pictures, bounded retries, a rate limit, costs, and a cache on disk."""

import base64
import hashlib
import json
import os
import random
import threading
import time
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx

from portraitkit.errors import UserError
from portraitkit.images import read_image, resize, to_pil

RETRIED = (408, 409, 429, 500, 502, 503, 504)
LONGEST_PAUSE = 60.0


class EndpointError(UserError):
    """The endpoint cannot be used: refused, unreachable after all retries, or not speaking the protocol."""


@dataclass(frozen=True)
class Reply:
    """What a model said, and what it took.

    Attributes:
        text: of the first choice.
        tokens_in: billed input tokens, 0 where the server does not say.
        tokens_out: billed output tokens.
        cached: whether it came from the disk.
    """

    text: str
    tokens_in: int
    tokens_out: int
    cached: bool


class Pace:
    """Lets at most `per_minute` requests start within any minute; 0 is no limit."""

    def __init__(self, per_minute: int) -> None:
        self.gap = 60 / per_minute if per_minute else 0.0
        self.next, self.lock = 0.0, threading.Lock()

    def wait(self) -> None:
        """Wait for this request's turn."""
        if not self.gap:
            return
        with self.lock:
            now = time.monotonic()
            turn = max(now, self.next)
            self.next = turn + self.gap
        time.sleep(turn - now)


class Endpoint:
    """A client; safe to use from several threads.

    Args:
        url: base URL, with or without /v1's trailing slash.
        key: bearer token, or None.
        cache: folder of answers; the same question is never paid twice.
        timeout: seconds for one answer.
        retries: further tries.
        per_minute: rate limit, 0 for none.
        pause: seconds before the first retry; it doubles, with jitter.
    """

    def __init__(
        self, url: str, *, key: str | None, cache: Path, timeout: float, retries: int, per_minute: int = 0, pause: float = 1.0
    ) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.url, self.cache, self.retries, self.pause = url.rstrip("/"), cache, retries, pause
        self.client = httpx.Client(headers=headers, timeout=timeout, follow_redirects=False)
        self.pace, self.stop = Pace(per_minute), threading.Event()

    def close(self) -> None:
        """Close connections; requests that wait for a retry give up."""
        self.stop.set()
        self.client.close()

    def ask(self, model: str, prompt: str, pictures: list[str], *, temperature: float, max_tokens: int) -> Reply:
        """Ask about pictures.

        Args:
            model: its name at the endpoint.
            prompt: the text after the pictures.
            pictures: data URLs, see `data_url`.
            temperature: of sampling.
            max_tokens: longest answer.

        Raises:
            EndpointError: refused, or no answer after all retries; the key is never in the message.
        """
        content: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": picture}} for picture in pictures]
        messages = [{"role": "user", "content": [*content, {"type": "text", "text": prompt}]}]
        body = {"model": model, "messages": messages, "temperature": temperature, "max_tokens": max_tokens}
        path = self.cache / f"{hashlib.sha256(json.dumps([self.url, body], sort_keys=True).encode()).hexdigest()}.json"
        if path.is_file():
            try:
                stored = json.loads(path.read_text(encoding="utf-8"))
                return Reply(stored["text"], stored["tokens_in"], stored["tokens_out"], cached=True)
            except (ValueError, KeyError):
                path.unlink()  # cut off by a crash: ask again
        reply = self._post(model, body)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
        temporary.write_text(
            json.dumps({"text": reply.text, "tokens_in": reply.tokens_in, "tokens_out": reply.tokens_out}), encoding="utf-8"
        )
        temporary.replace(path)
        return reply

    def _post(self, model: str, body: dict[str, Any]) -> Reply:
        trouble = "gave up"
        for attempt in range(self.retries + 1):
            self.pace.wait()
            if self.stop.is_set():
                raise EndpointError(f"{self.url}: stopped")
            wait = self.pause * 2**attempt * random.uniform(0.5, 1.5)
            try:
                response = self.client.post(f"{self.url}/chat/completions", json=body)
            except httpx.InvalidURL as error:
                raise EndpointError(f"--endpoint {self.url}: is no address ({error})") from error
            except (httpx.TransportError, RuntimeError) as error:  # RuntimeError: closed by another thread
                trouble = f"{type(error).__name__}: {' '.join(str(error).split()) or 'no answer'}"
            else:
                if response.status_code == 200:
                    read = _read(response)
                    if read is not None:
                        return read
                    trouble = "the answer is not in the chat completions format"
                elif response.status_code in RETRIED:
                    trouble = f"HTTP {response.status_code}"
                    wait = max(wait, _retry_after(response))
                else:
                    words = " ".join(response.text[:200].split())
                    raise EndpointError(
                        f"{self.url}: HTTP {response.status_code} for model {model}: {words}; check address, model and API key"
                    )
            if attempt < self.retries and self.stop.wait(min(wait, LONGEST_PAUSE)):
                break
        raise EndpointError(
            f"{self.url}: no answer of model {model} after {self.retries + 1} tries ({trouble}); nothing is lost, try later"
        )


def data_url(path: Path, max_side: int) -> str:
    """A picture as a PNG data URL, upright and in sRGB, its longer side at most `max_side` pixels.

    Raises:
        ImageError: it cannot be read.
    """
    pixels = read_image(path).pixels
    height, width = pixels.shape[1:]
    scale = min(1.0, max_side / max(height, width))
    out = BytesIO()
    to_pil(resize(pixels, (max(1, round(height * scale)), max(1, round(width * scale))))).save(out, "PNG")
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"


def _read(response: httpx.Response) -> Reply | None:
    try:
        value = response.json()
        text = value["choices"][0]["message"]["content"]
        usage = value.get("usage") or {}
        tokens = [int(usage.get(key) or 0) for key in ("prompt_tokens", "completion_tokens")]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return None
    return Reply(text, tokens[0], tokens[1], cached=False) if isinstance(text, str) else None


def _retry_after(response: httpx.Response) -> float:
    try:
        return max(0.0, float(response.headers.get("retry-after", "0")))
    except ValueError:
        return 0.0
