"""Options of `serve-judge`. The docstring under a field is its help text."""

from dataclasses import dataclass, field

from portraitkit.errors import ConfigError
from portraitkit.serving import is_loopback


@dataclass(frozen=True)
class ServeJudgeConfig:
    """Serve a judge behind an OpenAI-compatible endpoint: /v1/chat/completions, /v1/models, /health."""

    model: str = "embedded"
    """embedded, a local folder, or a hub id of a vision-language model; a folder with a LoRA is loaded onto its base."""
    host: str = "127.0.0.1"
    """Address to listen on; anything but loopback is open to everyone who reaches this machine."""
    port: int = 8000
    """Port to listen on; 0 takes a free one and prints it."""
    device: str = "cpu"
    """cpu, cuda, cuda:1 ..."""
    dtype: str = "auto"
    """float32, bfloat16, or auto: float32 on the CPU, else bfloat16."""
    batch_size: int = 32
    """Most requests answered at once."""
    wait_ms: float = 8.0
    """Milliseconds that a request waits for others to be answered with it."""
    max_request_mib: float = 32.0
    """Largest request in MiB."""
    max_pictures: int = 6
    """Most pictures in a request."""
    max_tokens: int = 2048
    """Most tokens of an answer, whatever a request asks for."""
    max_waiting: int = 512
    """Requests that may wait; further ones are told to come again (503)."""
    allowed_hosts: tuple[str, ...] = field(default=())
    """On loopback: further names in the Host header that are answered, for a proxy in front."""

    def __post_init__(self) -> None:
        """Refuse impossible values before a model is loaded.

        Raises:
            ConfigError: a value is out of range.
        """
        rules = {
            "port": (0 <= self.port <= 65535, "between 0 (any free one) and 65535"),
            "dtype": (self.dtype in ("auto", "float32", "bfloat16"), "must be auto, float32 or bfloat16"),
            "batch_size": (self.batch_size >= 1, "at least 1"),
            "wait_ms": (0 <= self.wait_ms <= 1000, "between 0 and 1000 milliseconds"),
            "max_request_mib": (0 < self.max_request_mib <= 1024, "above 0 and at most 1024"),
            "max_pictures": (self.max_pictures >= 1, "at least 1"),
            "max_tokens": (self.max_tokens >= 1, "at least 1"),
            "max_waiting": (self.max_waiting >= 1, "at least 1"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise ConfigError(f"--{name.replace('_', '-')} {getattr(self, name)}: {rule}")

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return is_loopback(self.host)
