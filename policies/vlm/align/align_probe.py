"""The folder of an `align-vlm --probe`: nothing was trained, so the run that follows takes it over."""

import json
from pathlib import Path

FILES = {"config.json", "environment.json", "metrics.jsonl", "probe.json", "report.html", "quarantine.jsonl"}
"""What a probe leaves behind."""


def holds_probe_only(folder: Path) -> bool:
    """Whether a folder holds a finished probe and nothing else: seconds of work, which a run does anyway before it trains."""
    if not (folder / "probe.json").is_file() or not {path.name for path in folder.iterdir()} <= FILES:
        return False
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("probe") is True
