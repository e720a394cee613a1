"""vLLM as TRL's generation engine: what can be known to go wrong is said before a model is loaded."""

import importlib.util
import time
from typing import Any

from portraitkit.errors import ConfigError

INSTALL = "install portraitkit[vllm] on a Linux machine with CUDA, or leave use_vllm out"


def check_vllm(arguments: Any, device: str) -> int | None:
    """Refuse vLLM where it cannot work.

    Args:
        arguments: a `trl.GRPOConfig`.
        device: of the training.

    Returns:
        Tokens of the longest sequence that the engine takes; None where vLLM is not used, or does not say.

    Raises:
        ConfigError: vLLM is not installed, the device is no CUDA one, the mode is unknown, or the server does not answer.
    """
    if not arguments.use_vllm:
        return None
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError(f"--trl use_vllm=true: vllm is not installed; {INSTALL}")
    if not device.startswith("cuda"):
        raise ConfigError(f"--trl use_vllm=true: vLLM needs --device cuda, not {device}; {INSTALL}")
    if arguments.vllm_mode not in ("colocate", "server"):
        raise ConfigError(f"--trl vllm_mode={arguments.vllm_mode}: must be colocate or server")
    if arguments.vllm_mode == "colocate":
        return arguments.vllm_max_model_length
    url = arguments.vllm_server_base_url or f"http://{arguments.vllm_server_host}:{arguments.vllm_server_port}"
    return _wait_for_server(url.rstrip("/"), arguments.vllm_server_timeout)


def _wait_for_server(url: str, timeout: float) -> int | None:
    """Until the server is up; returns the longest sequence that it takes, if it says."""
    import httpx

    end = time.monotonic() + timeout
    while True:
        try:
            if httpx.get(f"{url}/health", timeout=10).status_code == 200:
                return _longest(httpx.get(f"{url}/v1/models", timeout=10))
            reason = "is not ready"
        except httpx.HTTPError as error:
            reason = f"does not answer ({str(error) or type(error).__name__})"
        if time.monotonic() >= end:
            raise ConfigError(
                f"--trl vllm_mode=server: {url} {reason} after {timeout:g} s; start it with trl vllm-serve --model MODEL on other "
                "GPUs, or give vllm_server_base_url"
            )
        time.sleep(min(2.0, max(end - time.monotonic(), 0.0)))


def _longest(answer: Any) -> int | None:
    """`max_model_len` of the first model that a server lists."""
    try:
        found = answer.json()["data"][0]["max_model_len"]
    except (ValueError, KeyError, IndexError, TypeError):
        return None
    return found if isinstance(found, int) else None
