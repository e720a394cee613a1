"""Entry point of `serve-judge`. Imports nothing heavy at its top: `--help` must answer at once."""

from portraitkit.cli import command
from portraitkit.config import load_config
from portraitkit.errors import ConfigError
from reward_models.workers.options import ServeJudgeConfig


@command
def serve_judge(argv: list[str]) -> int:
    """A judge behind an OpenAI-compatible endpoint. SIGINT or SIGTERM ends the process as signals do (130 or 143) once all is answered."""
    config = load_config(ServeJudgeConfig, argv, prog="serve-judge", example="--model runs/reward-model/model --port 8000")
    from rich.console import Console

    from portraitkit.serving import listen, server_of, url_of, warn_of_others
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
        app = judge_app(judge, config)
        warn_of_others(config.host, "can use the model without a key")
        console.print(f"judge {config.model} at {url_of(config.host, listener)}/v1", markup=False, soft_wrap=True)
        server_of(app, timeout_graceful_shutdown=30).run(sockets=[listener])
    return 0
