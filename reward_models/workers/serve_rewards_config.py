"""Options of `serve-rewards`. The docstring under a field is its help text."""

from dataclasses import dataclass
from typing import Annotated

from portraitkit.config import Options, Port, Range
from portraitkit.serving import is_loopback


@dataclass(frozen=True)
class ServeRewardsConfig(Options):
    """Serve rewards to `align-retoucher --reward-worker http://HOST:PORT`: /v1/score and /health."""

    rewards: tuple[str, ...] = ("blemish_removal", "texture", "skin_tone", "identity", "clarity")
    """Rewards served, by the names that align-retoucher takes: the verifiable ones, clip_similarity:PATH, iqa:NAME, judge:PATH[:FORM]."""
    host: str = "127.0.0.1"
    """Address to listen on; anything but loopback is open to everyone who reaches this machine and has the token, if there is one."""
    port: Port = 8600
    """Port to listen on; 0 takes a free one and prints it."""
    device: str = "cpu"
    """Where pictures are scored: cpu, cuda, cuda:1 ..."""
    max_waiting: Annotated[int, Range(ge=1)] = 16
    """Requests held at once, the one being scored among them; further ones are told to come again (503)."""
    max_request_mib: Annotated[float, Range(gt=0, le=65536)] = 512.0
    """Largest request in MiB. A candidate of h x w pixels takes 12 h w bytes, and its group's photo 36 h w."""
    allowed_hosts: tuple[str, ...] = ()
    """On loopback: further names in the Host header that are answered, for a proxy in front."""

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return is_loopback(self.host)
