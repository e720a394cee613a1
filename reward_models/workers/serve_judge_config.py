"""Options of `serve-judge`. The docstring under a field is its help text."""

from dataclasses import dataclass
from typing import Annotated, Literal

from portraitkit.config import Options, Port, Range
from portraitkit.serving import is_loopback


@dataclass(frozen=True)
class ServeJudgeConfig(Options):
    """Serve a judge behind an OpenAI-compatible endpoint: /v1/chat/completions, /v1/models, /health."""

    model: str = "embedded"
    """embedded, a local folder, or a hub id of a vision-language model; a folder with a LoRA is loaded onto its base."""
    host: str = "127.0.0.1"
    """Address to listen on; anything but loopback is open to everyone who reaches this machine."""
    port: Port = 8000
    """Port to listen on; 0 takes a free one and prints it."""
    device: str = "cpu"
    """cpu, cuda, cuda:1 ..."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """float32, bfloat16, or auto: float32 on the CPU, else bfloat16."""
    batch_size: Annotated[int, Range(ge=1)] = 32
    """Most requests answered at once."""
    wait_ms: Annotated[float, Range(ge=0, le=1000)] = 8.0
    """Milliseconds that a request waits for others to be answered with it."""
    max_request_mib: Annotated[float, Range(gt=0, le=1024)] = 32.0
    """Largest request in MiB."""
    max_pictures: Annotated[int, Range(ge=1)] = 6
    """Most pictures in a request."""
    max_tokens: Annotated[int, Range(ge=1)] = 2048
    """Most tokens of an answer, whatever a request asks for."""
    max_waiting: Annotated[int, Range(ge=1)] = 512
    """Requests that may wait; further ones are told to come again (503)."""
    allowed_hosts: tuple[str, ...] = ()
    """On loopback: further names in the Host header that are answered, for a proxy in front."""

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return is_loopback(self.host)
