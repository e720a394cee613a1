"""A chat request of the OpenAI interface, read strictly, and the answer to it."""

import base64
import binascii
import json
import time
import uuid
from dataclasses import dataclass
from typing import Any

from portraitkit.endpoint import Reply
from portraitkit.errors import DataError
from portraitkit.pictures.images import decode_image
from reward_models.judge.backends import Picture

KINDS = ("data:image/png;base64,", "data:image/jpeg;base64,", "data:image/webp;base64,")
REFUSED = {"stream": (None, False), "n": (None, 1), "tools": (None, []), "temperature": (None, 0, 0.0), "stop": (None, [])}
"""Options with the only values that this server can honour; None where they are not given."""
MOST_PROMPT = 20_000
MOST_PIXELS = 20_000_000  # Of one picture, checked before it is decoded


@dataclass(frozen=True)
class ChatRequest:
    """One user turn."""

    prompt: str  # its text
    pictures: tuple[Picture, ...]  # shown before it, RGB in [0, 1]
    max_tokens: int  # of the answer
    top_logprobs: int | None  # alternatives of each token to be told; None: not even the tokens themselves


def read_request(body: bytes, *, model: str, max_pictures: int, max_tokens: int) -> ChatRequest:
    """Read a request: one user turn, pictures as data URLs before one text, greedy decoding.
    DataError: it is none, or asks for what this server cannot do; the message says what.
    ImageError: a picture cannot be decoded, or is too large."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise DataError("the body is not valid JSON") from error
    if not isinstance(value, dict):
        raise DataError(f"the body is a {type(value).__name__}: must be an object with model and messages")
    if value.get("model") not in (None, model):
        raise DataError(f"model {str(value['model'])[:80]!r}: only {model!r} is served here")
    for name, allowed in REFUSED.items():
        if value.get(name) not in allowed:
            raise DataError(f"{name} {str(value[name])[:40]}: must be {allowed[1]} or left out; answers are greedy, single and whole")
    messages = value.get("messages")
    if not isinstance(messages, list) or len(messages) != 1 or not isinstance(messages[0], dict) or messages[0].get("role") != "user":
        raise DataError("messages: must be one turn of the user")
    content = messages[0].get("content")
    kinds = [part.get("type") if isinstance(part, dict) else None for part in content] if isinstance(content, list) else []
    if kinds != ["image_url"] * (len(kinds) - 1) + ["text"] or len(kinds) < 2:
        raise DataError("content: must be a list of at least one image_url part and then one text part")
    if len(kinds) - 1 > max_pictures:
        raise DataError(f"{len(kinds) - 1} pictures: at most {max_pictures} are looked at")
    prompt = content[-1].get("text")
    if not isinstance(prompt, str) or not 0 < len(prompt) <= MOST_PROMPT:
        raise DataError(f"text: must be a string of 1 to {MOST_PROMPT} characters")
    pictures = tuple(_read_picture(part.get("image_url"), place) for place, part in enumerate(content[:-1], start=1))
    wanted = _whole(value, "max_tokens", "max_completion_tokens", default=max_tokens, low=1, high=1 << 20)
    told = _whole(value, "top_logprobs", default=0, low=0, high=20) if value.get("logprobs") else None
    return ChatRequest(prompt, pictures, min(wanted, max_tokens), told)


def _read_picture(value: Any, place: int) -> Picture:
    url = value.get("url") if isinstance(value, dict) else value
    if not isinstance(url, str) or not url.startswith(KINDS):
        raise DataError(f"picture {place}: must be a base64 data URL of a PNG, JPEG or WebP; nothing is fetched")
    try:
        data = base64.b64decode(url.partition(",")[2], validate=True)
    except binascii.Error as error:
        raise DataError(f"picture {place}: is not valid base64") from error
    return decode_image(data, f"picture {place}", max_pixels=MOST_PIXELS).pixels


def _whole(value: dict[str, Any], *names: str, default: int, low: int, high: int) -> int:
    for name in names:
        number = value.get(name)
        if number is None:
            continue
        if isinstance(number, bool) or not isinstance(number, int) or not low <= number <= high:
            raise DataError(f"{name} {str(number)[:40]}: must be a whole number from {low} to {high}")
        return number
    return default


def completion_of(said: Reply, request: ChatRequest, model: str) -> dict[str, Any]:
    """The answer as the OpenAI interface has it; of the tokens' probabilities, those of the digits."""
    message = {"role": "assistant", "content": said.text}
    choice: dict[str, Any] = {"index": 0, "message": message, "finish_reason": "length" if said.cut else "stop", "logprobs": None}
    if request.top_logprobs is not None:
        choice["logprobs"] = {"content": [_token(text, chances, request.top_logprobs) for text, chances in said.choices]}
    made = {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": "chat.completion", "created": int(time.time()), "model": model}
    asked, answered = said.tokens_in, said.tokens_out
    return made | {"choices": [choice], "usage": {"prompt_tokens": asked, "completion_tokens": answered, "total_tokens": asked + answered}}


def _token(text: str, chances: dict[str, float], most: int) -> dict[str, Any]:
    def told(token: str) -> dict[str, Any]:  # JSON has no infinity; OpenAI gives -9999 there
        return {"token": token, "logprob": max(-9999.0, chances[token]), "bytes": list(token.encode())}

    return told(text) | {"top_logprobs": [told(token) for token in sorted(chances, key=lambda token: -chances[token])[:most]]}
