"""Entry point of `serve-rewards`. Imports nothing heavy at its top: `--help` must answer at once."""

from portraitkit.cli import command
from portraitkit.config import load_config
from reward_models.workers.options import ServeRewardsConfig


@command
def serve_rewards(argv: list[str]) -> int:
    """Rewards in a process or on a host of their own, until SIGINT or SIGTERM; what is being scored or waits for it is answered first."""
    config = load_config(ServeRewardsConfig, argv, prog="serve-rewards", example="--rewards judge:embedded --port 8600")
    from rich.console import Console

    from portraitkit.endpoint import read_key
    from portraitkit.serving import listen, server_of, url_of, warn_of_others
    from portraitkit.vlm.model import check_device
    from reward_models.reward_set import build_rewards, check_names
    from reward_models.workers.server import Desk, rewards_app
    from reward_models.workers.wire import TOKEN_ENV

    console = Console(stderr=True, highlight=False)
    check_names(config.rewards)
    check_device(config.device)
    token = read_key("serve-rewards", TOKEN_ENV, optional=True)
    with listen(config.host, config.port) as listener:
        desk = Desk(lambda: build_rewards(config.rewards, (), "product", config.device), config.device)
        app = rewards_app(desk, config, token=token)
        warn_of_others(config.host, "and has the token can use the rewards" if token else f"can use the rewards (set {TOKEN_ENV})")
        console.print(f"{', '.join(config.rewards)} at {url_of(config.host, listener)}", markup=False, soft_wrap=True)
        server = server_of(app, timeout_graceful_shutdown=60, timeout_keep_alive=60)  # longer than a client keeps an idle connection
        desk.on_failure = lambda: setattr(server, "should_exit", True)
        server.run(sockets=[listener])
        if desk.failure is not None:
            raise desk.failure
    return 0
