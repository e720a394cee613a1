"""vLLM by configuration, as far as a machine without it can show."""

import importlib.util

import httpx
import pytest

from portraitkit.errors import ConfigError
from portraitkit.vlm.trainer_arguments import grpo_arguments
from portraitkit.vlm.trainer_options import TrainerOptions
from portraitkit.vlm.trainers import check_vllm

COLOCATE = ("use_vllm=true", "vllm_mode=colocate", "vllm_max_model_length=4096", "vllm_gpu_memory_utilization=0.4")
SERVER = ("use_vllm=true", "vllm_mode=server", "vllm_server_base_url=http://node1:8000/", "vllm_server_timeout=0")


@pytest.fixture
def installed(monkeypatch):
    """As if vLLM were there."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)


def arguments(tmp_path, trl):
    options = TrainerOptions(
        device="cpu", dtype="float32", trl=trl, group_size=8, prompts_per_step=4, temperature=0.9, top_p=0.95, max_tokens=200
    )
    return grpo_arguments(options, str(tmp_path))


def test_colocate_reaches_trl_beside_our_own_options(tmp_path):
    made = arguments(tmp_path, COLOCATE)
    assert made.use_vllm is True and made.vllm_mode == "colocate"
    assert made.vllm_max_model_length == 4096 and made.vllm_gpu_memory_utilization == 0.4
    assert made.num_generations == 8 and made.per_device_train_batch_size == 32
    assert (made.temperature, made.top_p, made.max_completion_length) == (0.9, 0.95, 200)


def test_server_reaches_trl(tmp_path):
    made = arguments(tmp_path, SERVER)
    assert made.vllm_mode == "server" and made.vllm_server_base_url == "http://node1:8000/" and made.vllm_server_timeout == 0


def test_what_cannot_work_is_refused(tmp_path, monkeypatch):
    assert check_vllm(arguments(tmp_path, ()), "cpu") is None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"vllm is not installed; install portraitkit\[vllm\]"):
        check_vllm(arguments(tmp_path, COLOCATE), "cuda")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    with pytest.raises(ConfigError, match="needs --device cuda, not cpu"):
        check_vllm(arguments(tmp_path, COLOCATE), "cpu")
    with pytest.raises(ConfigError, match="vllm_mode=both"):
        check_vllm(arguments(tmp_path, ("use_vllm=true", "vllm_mode=both")), "cuda")


def test_the_engine_says_how_long_a_sequence_may_be(tmp_path, installed, monkeypatch):
    assert check_vllm(arguments(tmp_path, COLOCATE), "cuda") == 4096
    asked = []

    def get(url, timeout):
        asked.append(url)
        found = {"data": [{"id": "model", "max_model_len": 8192}]}
        return httpx.Response(200, json=found if url.endswith("models") else None)

    monkeypatch.setattr(httpx, "get", get)
    assert check_vllm(arguments(tmp_path, SERVER), "cuda") == 8192
    assert asked == ["http://node1:8000/health", "http://node1:8000/v1/models"]


def test_a_server_that_is_not_there_is_one_line(tmp_path, installed, monkeypatch):
    def get(url, timeout):
        raise httpx.ConnectError("refused")

    monkeypatch.setattr(httpx, "get", get)
    with pytest.raises(ConfigError, match="http://node1:8000 does not answer .refused. after 0 s; start it with trl vllm-serve"):
        check_vllm(arguments(tmp_path, SERVER), "cuda")
