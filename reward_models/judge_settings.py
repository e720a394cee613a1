"""How a trained judge is shown pairs and answers: `judge.json` beside its weights, so that whoever loads it asks as it was taught."""

import json
from dataclasses import asdict
from pathlib import Path

from portraitkit.errors import WeightsError
from portraitkit.files import write_text
from portraitkit.vlm.load import EMBEDDED
from reward_models.judge_views import SHOWN
from reward_models.judged_pairs import View

SETTINGS = "judge.json"


def write_view(folder: Path, view: View) -> None:
    """Write `judge.json` into a model's folder."""
    write_text(folder / SETTINGS, json.dumps(asdict(view), indent=2) + "\n")


def view_of(model: str, shown: str = "auto", form: str = "auto") -> View:
    """The view for a model: what is given, else what its folder says, else the embedded judge's or a large model's.

    Args:
        model: embedded, a folder or a hub id.
        shown: auto, or a key of `judge_views.SHOWN`.
        form: auto, brief or full.

    Raises:
        WeightsError: its `judge.json` is none.
    """
    path = (EMBEDDED if model == "embedded" else Path(model)) / SETTINGS
    found = {"shown": "beside-difference", "form": "brief"} if model == "embedded" else {"shown": "as-taken", "form": "full"}
    if path.is_file():
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            found |= {name: stored[name] for name in found}
        except (ValueError, KeyError, TypeError) as error:
            raise WeightsError(f"{path}: is no judge's settings ({error}); give --shown and --form, or remove it") from error
        if found["shown"] not in SHOWN or found["form"] not in ("brief", "full"):
            raise WeightsError(f"{path}: shown {found['shown']!r}, form {found['form']!r} are not known; mend or remove it")
    return View(found["shown"] if shown == "auto" else shown, found["form"] if form == "auto" else form)
