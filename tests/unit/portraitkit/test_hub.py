"""The hub, replaced by a fake one: names, the repository before training, the push after it."""

import httpx
import huggingface_hub
import pytest
from huggingface_hub.errors import HfHubHTTPError

from portraitkit.errors import ConfigError, HubError
from portraitkit.hub import check_repo_name, open_repo, push_folder


class FakeHub:
    """Remembers what it is asked to do; refuses where it is told to."""

    calls: list = []
    failing: dict = {}

    def create_repo(self, name, **options):
        self._do("create_repo", name, options)
        return type("Url", (), {"repo_id": name if "/" in name else f"me/{name}"})()

    def upload_folder(self, **options):
        self._do("upload_folder", options["repo_id"], options)

    def _do(self, what, name, options):
        if what in self.failing:
            raise self.failing[what]
        FakeHub.calls.append((what, name, options))


@pytest.fixture
def hub(monkeypatch):
    FakeHub.calls, FakeHub.failing = [], {}
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeHub)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "secret")
    return FakeHub


@pytest.mark.parametrize("name", ["", "a/b/c", "me/a b", "me/..", "-me/x", "me/x.git", "me/" + "x" * 100, "https://hub/me/x"])
def test_impossible_names_are_refused(name):
    with pytest.raises(ConfigError, match="must be OWNER/NAME") as error:
        check_repo_name(name)
    assert "\n" not in str(error.value)


def test_a_repository_is_made_private_and_filled(hub, tmp_path):
    check_repo_name("me/model")
    assert open_repo("model") == "me/model"
    assert push_folder(tmp_path, "me/model", files=("README.md",)) == "https://huggingface.co/me/model"
    (made, pushed) = hub.calls
    assert made == ("create_repo", "model", {"private": True, "exist_ok": True})
    assert pushed[2]["folder_path"] == tmp_path.resolve() and pushed[2]["allow_patterns"] == ["README.md"]
    push_folder(tmp_path, "me/model")
    assert "*.bin" in hub.calls[-1][2]["ignore_patterns"]


def test_without_a_login_nothing_begins(hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(ConfigError, match="nobody is logged in; run hf auth login"):
        open_repo("me/model")
    assert hub.calls == []


ERRORS = [
    httpx.ConnectError("no route\nsecond line"),
    HfHubHTTPError("403 Forbidden", response=httpx.Response(403, request=httpx.Request("POST", "https://hub"))),
    OSError("disk"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_failures_are_one_line_and_say_what_to_do(hub, tmp_path, error):
    hub.failing = {"create_repo": error, "upload_folder": error}
    with pytest.raises(HubError, match="cannot be made or written to") as refused:
        open_repo("me/model")
    with pytest.raises(HubError, match="the model is whole in .*hf upload me/model .* . --include README.md --private") as failed:
        push_folder(tmp_path, "me/model", files=("README.md",))
    assert "\n" not in str(refused.value) + str(failed.value)
