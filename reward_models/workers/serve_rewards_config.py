"""Options of `serve-rewards`. The docstring under a field is its help text."""

from dataclasses import dataclass, field

from portraitkit.errors import ConfigError
from portraitkit.serving import is_loopback


@dataclass(frozen=True)
class ServeRewardsConfig:
    """Serve rewards to `align-retoucher --reward-worker http://HOST:PORT`: /v1/score and /health."""

    rewards: tuple[str, ...] = ("blemish_removal", "texture", "skin_tone", "identity", "clarity")
    """Rewards served, by the names that align-retoucher takes: the verifiable ones, clip_similarity:PATH, iqa:NAME, judge:PATH[:FORM]."""
    host: str = "127.0.0.1"
    """Address to listen on; anything but loopback is open to everyone who reaches this machine and has the token, if there is one."""
    port: int = 8600
    """Port to listen on; 0 takes a free one and prints it."""
    device: str = "cpu"
    """Where pictures are scored: cpu, cuda, cuda:1 ..."""
    max_waiting: int = 16
    """Requests held at once, the one being scored among them; further ones are told to come again (503)."""
    max_request_mib: float = 512.0
    """Largest request in MiB. A candidate of h x w pixels takes 12 h w bytes, and its group's photo 36 h w."""
    allowed_hosts: tuple[str, ...] = field(default=())
    """On loopback: further names in the Host header that are answered, for a proxy in front."""

    def __post_init__(self) -> None:
        """Refuse impossible values before anything is loaded.

        Raises:
            ConfigError: a value is out of range.
        """
        rules = {
            "port": (0 <= self.port <= 65535, "between 0 (any free one) and 65535"),
            "max_waiting": (self.max_waiting >= 1, "at least 1"),
            "max_request_mib": (0 < self.max_request_mib <= 65536, "above 0 and at most 65536"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise ConfigError(f"--{name.replace('_', '-')} {getattr(self, name)}: {rule}")

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return is_loopback(self.host)
