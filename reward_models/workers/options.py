"""Every option of `serve-judge` and `serve-rewards`. The docstring under a field is its help text."""

from dataclasses import dataclass
from typing import Annotated, Literal

from portraitkit.config import Options, Port, Range


@dataclass(frozen=True)
class ServerConfig(Options):
    """What both servers have."""

    host: str = "127.0.0.1"
    """Address to listen on; anything but loopback is open to everyone who reaches this machine."""
    port: Port = 8000
    """Port to listen on; 0 takes a free one and prints it."""
    device: str = "cpu"
    """Where the model runs: cpu, cuda, cuda:1 ..."""
    allowed_hosts: tuple[str, ...] = ()
    """On loopback: further names in the Host header that are answered, for a proxy in front."""


@dataclass(frozen=True)
class ServeJudgeConfig(ServerConfig):
    """Serve a judge behind an OpenAI-compatible endpoint: /v1/chat/completions, /v1/models, /health."""

    model: str = "embedded"
    """embedded, a local folder, or a hub id of a vision-language model; a folder with a LoRA is loaded onto its base."""
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


@dataclass(frozen=True)
class ServeRewardsConfig(ServerConfig):
    """Serve rewards to `align-retoucher --reward-worker http://HOST:PORT`: /v1/score and /health."""

    rewards: tuple[str, ...] = ("blemish_removal", "texture", "skin_tone", "identity", "clarity", "own_color")
    """Rewards served, by the names that align-retoucher takes: the verifiable ones, clip_similarity:PATH, iqa:NAME, judge:PATH[:FORM]."""
    port: Port = 8600
    """Port to listen on; 0 takes a free one and prints it."""
    max_waiting: Annotated[int, Range(ge=1)] = 16
    """Requests held at once, the one being scored among them; further ones are told to come again (503)."""
    max_request_mib: Annotated[float, Range(gt=0, le=65536)] = 512.0
    """Largest request in MiB. A candidate of h x w pixels takes 12 h w bytes, and its group's photo 36 h w."""
