"""Every option of `make-preferences annotate`. The docstring under a field is its help text."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from portraitkit.errors import ConfigError

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class AnnotateConfig:
    """Have pairs judged: by people on a local web page (--web), or by models behind an OpenAI-compatible endpoint (--endpoint)."""

    data: Positional[Annotated[Path, arg(metavar="DATA")]]
    """Folder of a pair set; judgements go to its annotations/, one file an annotator."""
    web: bool = False
    """Serve the page for people."""
    host: str = "127.0.0.1"
    """Address of the page. Anything but loopback lets everyone in the network judge and see the photos."""
    port: int = 8765
    """Of the page; 0 takes a free one."""
    endpoint: str | None = None
    """Base URL of an OpenAI-compatible API, such as http://127.0.0.1:8000/v1. The photos are sent there."""
    model: tuple[str, ...] = ()
    """Models to ask there; each is an annotator of its own."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable with the API key; not set is fine for servers that need none."""
    pairs: Literal["unjudged", "all"] = "unjudged"
    """unjudged: pairs without a verdict in metadata.jsonl; all: also those with known truth."""
    limit: int | None = None
    """At most this many pairs."""
    both_orders: bool = True
    """Ask for every pair twice, candidates swapped; models lean to one side."""
    max_side: int = 1024
    """Pictures are made smaller to this side in pixels before they are sent."""
    temperature: float = 0.0
    """Of the models."""
    max_tokens: int = 1024
    """Longest answer."""
    timeout: float = 120.0
    """Seconds for one answer."""
    retries: int = 4
    """Further tries after 408, 409, 429, 5xx, a timeout or a broken connection, with growing pauses."""
    workers: int = 4
    """Requests at once."""
    requests_per_minute: int = 0
    """Rate limit; 0 is none."""
    price_in: float = 0.0
    """Price of a million input tokens, in any currency."""
    price_out: float = 0.0
    """Price of a million output tokens."""
    max_cost: float | None = None
    """Ask nothing that may bring the cost of this run above it, reckoned by the dearest answer so far; needs --price-in or --price-out."""
    max_unreadable: float = 0.5
    """Stop if more than this share of a model's answers (from the 20th on) breaks the contract."""

    def __post_init__(self) -> None:
        """Refuse impossible values before anything is loaded.

        Raises:
            ConfigError: neither or both of --web and --endpoint, or a value out of range.
        """
        if self.web == (self.endpoint is not None):
            raise ConfigError("annotate needs one of --web (people) and --endpoint URL --model NAME (models)")
        if self.endpoint is not None:
            if not self.endpoint.startswith(("http://", "https://")):
                raise ConfigError(f"--endpoint {self.endpoint}: must begin with http:// or https://, for example http://127.0.0.1:8000/v1")
            if not self.model or len(set(self.model)) != len(self.model):
                raise ConfigError("--model: name at least one model of the endpoint, each once")
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"--port {self.port}: must be between 0 and 65535")
        for name, low in (("workers", 1), ("max_side", 32), ("max_tokens", 16), ("retries", 0), ("requests_per_minute", 0)):
            if getattr(self, name) < low:
                raise ConfigError(f"--{name.replace('_', '-')} {getattr(self, name)}: at least {low}")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"--limit {self.limit}: at least 1")
        if self.timeout <= 0 or self.temperature < 0 or self.price_in < 0 or self.price_out < 0:
            raise ConfigError("--timeout must be above 0; --temperature and prices must not be negative")
        if self.max_cost is not None and (self.max_cost <= 0 or not (self.price_in or self.price_out)):
            raise ConfigError("--max-cost: must be above 0 and needs --price-in or --price-out")
        if not 0 <= self.max_unreadable <= 1:
            raise ConfigError(f"--max-unreadable {self.max_unreadable:g}: must be in [0, 1]")
