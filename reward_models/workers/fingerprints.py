"""Fingerprints of rewards: what a value depends on beside the pictures, so that two workers that differ are not taken for one."""

import hashlib
from importlib.metadata import version
from pathlib import Path

from reward_models.workers.wire import own_version


def fingerprint(name: str) -> str:
    """What a reward is made of, as text: the package's version, and the sha256 of the files in the folder that the name gives.

    A hub id, a model behind a URL and open_clip's MODEL/TAG stand for themselves: what is behind them is not looked at.
    """
    kind, _, argument = name.partition(":")
    text = f"portraitkit {own_version()}"
    if kind == "iqa":
        return f"{text}, pyiqa {version('pyiqa')}"
    if kind == "judge":
        from reward_models.judge.reward import split_argument

        argument = split_argument(argument)[0]
    folder = Path(argument.removeprefix("vllm:"))
    if not argument or not folder.is_dir():
        return text
    total = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        with path.open("rb") as file:
            total.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return f"{text}, sha256 {total.hexdigest()[:16]}"
