"""The page for notebooks runs as it stands, with fewer steps."""

import re
from pathlib import Path

import torch

PAGE = Path(__file__).parents[3] / "docs" / "notebook.md"


def test_the_pages_code_aligns_the_tiny_backbone(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(code.splitlines()) <= 40 and "range(20)" in code
    names: dict = {}
    exec(compile(code.replace("range(20)", "range(2)"), "notebook.md", "exec"), names)
    assert len(capsys.readouterr().out.splitlines()) == 2
    moved = [p for name, p in names["backbone"].transformer.named_parameters() if "lora_B" in name]
    assert all(torch.isfinite(p).all() for p in moved) and any(p.abs().max() > 0 for p in moved)
    photo = names["batch"].photos.source[:1]
    condition = names["backbone"].condition(photo, names["PROMPT"])
    noise = names["backbone"].noise(1, torch.Generator().manual_seed(0))
    assert names["sample_ode"](names["backbone"], condition, noise, 2).shape == photo.shape
