"""Models on the Hugging Face Hub: a repository is made before the training begins, and filled when it is over."""

from collections.abc import Sequence
from pathlib import Path

from portraitkit.errors import ConfigError, HubError, reason_of


def check_repo_name(name: str) -> None:
    """Refuse what can be no repository, OWNER/NAME or NAME for one's own, without the network; ConfigError: the hub's rules do not
    allow it."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ConfigError(f"--push-to-hub {name}: must be OWNER/NAME ({reason_of(error)})") from error


def open_repo(name: str) -> str:
    """Make the repository, private, unless it is there: whoever may not write to it learns so before the training; returns its full name.

    Raises:
        ConfigError: nobody is logged in.
        HubError: the hub cannot be reached, or refuses.
    """
    import httpx
    from huggingface_hub import HfApi, get_token

    if get_token() is None:
        raise ConfigError(f"--push-to-hub {name}: nobody is logged in; run hf auth login or set HF_TOKEN, or leave the option out")
    try:
        return HfApi().create_repo(name, private=True, exist_ok=True).repo_id
    except (OSError, httpx.HTTPError) as error:
        raise HubError(
            f"--push-to-hub {name}: the repository cannot be made or written to ({reason_of(error)}); check name, token and network, or "
            "leave the option out and push later with hf upload"
        ) from error


def push_folder(folder: Path, name: str, *, files: Sequence[str] = ()) -> str:
    """Upload a finished model with its README.md, all but pickles or only `files`; returns the address of the repository, see `open_repo`.

    Raises:
        HubError: it failed; the message says that the model is kept and how to push it later.
    """
    import httpx
    from huggingface_hub import HfApi

    allowed, ignored = (list(files), None) if files else (None, ["*.bin", "*.pt", "*.pkl"])
    try:
        HfApi().upload_folder(
            repo_id=name,
            folder_path=folder.resolve(),
            commit_message="Model and card by portraitkit",
            allow_patterns=allowed,
            ignore_patterns=ignored,
        )
    except (OSError, httpx.HTTPError) as error:
        only = "".join(f" --include {file}" for file in files)
        raise HubError(
            f"--push-to-hub {name}: failed ({reason_of(error)}); the model is whole in {folder}, push it later: "
            f"hf upload {name} {folder} .{only} --private"
        ) from error
    return f"https://huggingface.co/{name}"
