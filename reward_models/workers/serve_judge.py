"""`serve-judge`: its options and its entry point. Imports nothing heavy at its top: `--help` must answer at once.

The docstring under a field is its help text.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from portraitkit.cli import run_command
from portraitkit.config import Options, Port, Range, load_config
from portraitkit.errors import ConfigError


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


def serve_judge() -> None:
    """Console command `serve-judge`: a judge behind an OpenAI-compatible endpoint."""
    run_command(_serve)


def _serve(argv: list[str]) -> int:
    return serve(load_config(ServeJudgeConfig, argv, prog="serve-judge", example="--model runs/reward-model/model --port 8000"))


def serve(config: ServeJudgeConfig) -> int:
    """Serve until SIGINT or SIGTERM; what is being answered is finished first.

    Returns:
        0 where nothing else ends it; a signal ends the process as signals do (130 or 143) once all is answered.

    Raises:
        ConfigError: the address cannot be listened on, or the device is not there.
        WeightsError: the model cannot be loaded.
    """
    from rich.console import Console

    from portraitkit.serving import hosts_of, is_loopback, listen, server_of, url_of
    from portraitkit.vlm.model import check_device
    from reward_models.judge.judge import load_judge
    from reward_models.workers.server import judge_app

    console = Console(stderr=True, highlight=False)
    check_device(config.device)
    if config.model.startswith(("http://", "https://", "vllm:")):
        raise ConfigError(f"--model {config.model}: is served already, or by vLLM's own server; give embedded, a folder or a hub id")
    with listen(config.host, config.port) as listener:
        judge = load_judge(
            config.model, device=config.device, dtype=None if config.dtype == "auto" else config.dtype, batch_size=config.batch_size
        )
        app = judge_app(judge, config, allowed_hosts=hosts_of(config.host, config.allowed_hosts))
        if not is_loopback(config.host):
            console.print(
                f"[bold red]warning:[/] --host {config.host}: everyone who reaches this machine can use the model, without encryption "
                "and without a key. Put a proxy in front, or stay with 127.0.0.1."
            )
        console.print(f"judge {config.model} at {url_of(config.host, listener)}/v1", markup=False, soft_wrap=True)
        server_of(app, timeout_graceful_shutdown=30).run(sockets=[listener])
    return 0
