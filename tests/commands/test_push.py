"""Every run leaves a card, and --push-to-hub sends the model and nothing else to a hub, here a fake one."""

import json

import huggingface_hub
import pytest
from huggingface_hub import ModelCard
from tiny_vlm import write_rows, write_tiny_vlm

from policies.retoucher.main import align_retoucher
from policies.vlm.main import align_vlm
from portraitkit.report.page import number
from reward_models.main import train_reward_model

SMALL = ["--validation-rows", 1, "--held-out-rows", 4, "--probe-rows", 2, "--prompts-per-step", 2, "--group-size", 2, "--max-tokens", 6]
SMALL += ["--device", "cpu", "--dtype", "float32", "--samples", 2, "--max-train-steps", 1, "--validation-steps", 0]
RETOUCHER = ["--photos-per-step", 1, "--group-size", 2, "--max-train-steps", 1, "--validation-photos", 1, "--held-out-photos", 2]
RETOUCHER += ["--warmup-steps", 0, "--num-steps", 2, "--segments", 1]


@pytest.fixture
def hub(monkeypatch):
    """Calls of a fake hub: (what, repository, files that would go there); its `refusing` names the call that fails."""

    class Calls(list):
        refusing = ""

    calls = Calls()

    class FakeApi:
        def create_repo(self, name, *, private, exist_ok):
            if calls.refusing == "create_repo":
                raise OSError("403 Forbidden: you may not write there")
            calls.append(("create_repo", name, private))
            return type("Url", (), {"repo_id": name})()

        def upload_folder(self, *, repo_id, folder_path, commit_message, allow_patterns=None, ignore_patterns=None):
            if calls.refusing == "upload_folder":
                raise OSError("the connection broke")
            there = {path.relative_to(folder_path).as_posix() for path in folder_path.rglob("*") if path.is_file()}
            calls.append(("upload_folder", repo_id, {name for name in there if allow_patterns is None or name in allow_patterns}))

    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "secret")
    return calls


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Rows of the user's that say who is shown, and a tiny model with a card, in the current folder."""
    monkeypatch.chdir(tmp_path)

    def columns(index):
        meta = {"skin_tone": f"monk-{index // 2 + 1}"}
        return {"gender": ("woman", "man")[index % 2], "meta_info": meta, "licence": "cc0" if index else ""}

    write_rows(tmp_path / "faces", 6, 4, columns, lambda index: 48)
    write_tiny_vlm("model")
    (tmp_path / "model" / "README.md").write_text("---\nlicense: cc-by-nc-4.0\nbase_model: somebody/base\n---\n# Base\n")
    return tmp_path


def test_a_vlm_with_its_card_is_pushed(command, own, hub):
    options = ["--model", "./model", "--data", "faces", "--output-dir", "run", "--rank", 2, *SMALL]
    code, _, err = command(align_vlm, *options, "--push-to-hub", "me/area")
    assert code == 0 and "pushed: https://huggingface.co/me/area" in err, err
    assert hub[0] == ("create_repo", "me/area", True)
    kind, repo, files = hub[1]
    assert (kind, repo) == ("upload_folder", "me/area") and {"README.md", "adapter_model.safetensors"} <= files
    assert not any(name.endswith((".png", ".jsonl", ".html")) for name in files)
    card = ModelCard.load("run/model/README.md")
    assert card.data.license == "cc-by-nc-4.0" and card.data.base_model == "somebody/base" and card.data.library_name == "peft"
    summary = json.loads((own / "run" / "summary.json").read_text())
    greedy = summary["held_out"]["greedy"]
    assert card.data.eval_results[0].metric_value == pytest.approx(greedy["after"], abs=1e-5)
    assert f"| greedy reward | {number(greedy['before'])} | {number(greedy['after'])} |" in card.text
    assert "user's folder `faces`" in card.text and "ynthetic" not in card.text and str(own) not in card.text
    assert "### Greedy reward by gender" in card.text and "| woman * | 2 |" in card.text and "### Greedy reward by skin tone" in card.text
    assert "Licence as the rows say: cc0 (8), not given (2)." in card.text
    group = summary["groups"]["gender"]
    assert (group["man"]["after"] + group["woman"]["after"]) / 2 == pytest.approx(greedy["after"], abs=1e-5)
    assert "load_dataset" not in card.text and "is **not known**" not in card.text


def test_a_failed_push_loses_nothing(command, own, hub):
    hub.refusing = "upload_folder"
    code, _, err = command(align_vlm, "--model", "./model", "--train-rows", 4, "--output-dir", "run", *SMALL, "--push-to-hub", "me/area")
    message = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(message) == 1 and "hf upload me/area run/model ." in message[0] and "the connection broke" in message[0], err
    for name in ("summary.json", "report.html", "model/model.safetensors", "model/README.md"):
        assert (own / "run" / name).is_file()
    assert not (own / "run" / ".lock").exists()
    card = (own / "run" / "model" / "README.md").read_text()
    assert "**Synthetic**" in card and "synthetic pictures only" in card and "is **not known**" in card


@pytest.mark.parametrize(
    ("entry", "options"),
    [(align_vlm, ["--model", "./model"]), (train_reward_model, ["--model", "./model"]), (align_retoucher, [])],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_cannot_be_pushed_is_refused_before_training(command, own, hub, monkeypatch, entry, options):
    options = [*options, "--output-dir", "run"]
    if entry is align_vlm:
        options += ["--train-rows", 2, *SMALL]
    if entry is train_reward_model:
        options += ["--train-pairs", 2, "--validation-pairs", 1, "--held-out-pairs", 2, "--max-tokens", 6, "--form", "brief"]
        options += ["--shown", "beside-difference"]
    if entry is align_retoucher:
        options += RETOUCHER
    for name, words in (("me/a b", "must be OWNER/NAME"), ("datasets/me/x", "must be OWNER/NAME")):
        code, _, err = command(entry, *options, "--push-to-hub", name)
        assert code == 2 and words in err and hub == []
    hub.refusing = "create_repo"
    code, _, err = command(entry, *options, "--push-to-hub", "me/x")
    assert code == 2 and "cannot be made or written to (403 Forbidden" in err
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    code, _, err = command(entry, *options, "--push-to-hub", "me/x")
    assert code == 2 and "nobody is logged in" in err
    assert not (own / "run").exists()


@pytest.mark.parametrize(
    ("entry", "options"),
    [(align_vlm, ["--probe"]), (align_vlm, ["--export", "verl"]), (train_reward_model, ["--evaluate"]), (align_retoucher, ["--ablate"])],
)
def test_what_makes_no_model_is_not_pushed(command, entry, options):
    code, _, err = command(entry, *options, "--push-to-hub", "me/x")
    assert code == 2 and "--push-to-hub" in err


def test_a_retoucher_with_its_card_is_pushed_without_pictures(command, tmp_path, hub):
    code, _, err = command(align_retoucher, "--output-dir", tmp_path / "run", *RETOUCHER, "--push-to-hub", "me/retoucher")
    assert code == 0 and "pushed: https://huggingface.co/me/retoucher" in err, err
    assert hub[-1] == ("upload_folder", "me/retoucher", {"README.md", "pytorch_lora_weights.safetensors"})
    card = ModelCard.load(tmp_path / "run" / "README.md")
    assert card.data.license == "apache-2.0" and card.data.library_name == "diffusers" and card.data.pipeline_tag == "image-to-image"
    change = json.loads((tmp_path / "run" / "summary.json").read_text())["held_out"]["reward"]
    assert card.data.eval_results[0].metric_value == pytest.approx(change["after"], abs=1e-5)
    assert "**Synthetic**" in card.text and "| Reward |" in card.text and "is **not known**" in card.text
    assert str(tmp_path) not in card.text and "portraitkit/embedded-retoucher" in card.text
