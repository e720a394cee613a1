"""A judge behind an OpenAI-compatible endpoint: `serve-judge`, vLLM's server, or anything that speaks `/v1/chat/completions`."""

from collections.abc import Sequence
from typing import Any

from portraitkit.endpoint import Endpoint, Question
from portraitkit.errors import ConfigError, WeightsError
from reward_models.judge.backend import Picture, Said

TOP = 20
"""Most alternatives of a token that OpenAI's interface tells."""
KEY_ENV = "JUDGE_API_KEY"


class HttpBackend:
    """A model behind an endpoint.

    Args:
        endpoint: asks greedily; with `top_logprobs` where the server tells them.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint, self.name = endpoint, endpoint.model

    @classmethod
    def connect(cls, url: str, *, timeout: float = 120.0, retries: int = 3, workers: int = 16) -> tuple["HttpBackend", dict[str, Any]]:
        """Connect to the first model of `URL/models`; the key, if one is needed, is in JUDGE_API_KEY.

        Args:
            url: up to and including the version.
            timeout: seconds for one request.
            retries: further requests after one that failed for a reason that may pass.
            workers: requests under way at once.

        Returns:
            The backend, and what the server says of the model: `serve-judge` tells its `judge` settings there.

        Raises:
            ConfigError: the URL is none.
            WeightsError: nothing answers there, or not with a list of models.
        """
        import httpx

        probe = Endpoint(url, "?", key_env=KEY_ENV, key_optional=True, timeout=min(timeout, 20.0))
        try:
            response = probe.client.get(f"{probe.url}/models")
            card = response.json()["data"][0]
            name = card["id"]
        except httpx.HTTPError as error:
            raise WeightsError(f"judge {url}: nothing answers there ({type(error).__name__}); start serve-judge, or check it") from error
        except (ValueError, LookupError, TypeError) as error:
            raise WeightsError(f"judge {url}: {url}/models lists no model; check address and {KEY_ENV}") from error
        finally:
            probe.close()
        if not isinstance(name, str) or not isinstance(card, dict):
            raise ConfigError(f"judge {url}: the model there has no name")
        options = {"timeout": timeout, "retries": retries, "workers": workers, "top_logprobs": TOP}
        return cls(Endpoint(url, name, key_env=KEY_ENV, key_optional=True, **options)), card

    def ask(self, prompt: str, shown: Sequence[tuple[Picture, ...]], max_tokens: int) -> list[Said]:
        """See `judge_backend.Backend`; a request that failed for good is an answer without a text."""
        self.endpoint.max_tokens = max_tokens
        replies = self.endpoint.ask([Question(prompt, pictures) for pictures in shown])
        return [Said(reply.text, reply.error, reply.choices) for reply in replies]

    def close(self) -> None:
        """Close the connections."""
        self.endpoint.close()
