import pytest

from policies.vlm.align.align_stages import Start, find_start
from portraitkit.errors import CheckpointError

BOTH = ("sft", "grpo")


@pytest.fixture
def run(tmp_path):
    """Makes checkpoints and stage models in a run's folder and returns it."""

    def make(*names):
        for name in names:
            name, _, cut = name.partition(" ")
            (tmp_path / name).mkdir(parents=True)
            if "checkpoint" in name:
                (tmp_path / name / "trainer_state.json").write_text("{" if cut else "{}")
                (tmp_path / name / "model.safetensors").touch()
        return tmp_path

    return make


@pytest.mark.parametrize(
    ("holds", "stages", "start"),
    [
        (["checkpoint-2", "checkpoint-10"], ("grpo",), ("grpo", "checkpoint-10")),
        (["checkpoint-2", "checkpoint-10 cut"], ("grpo",), ("grpo", "checkpoint-2")),
        (["sft/checkpoint-3"], ("sft",), ("sft", "sft/checkpoint-3")),
        (["sft/checkpoint-3"], BOTH, ("sft", "sft/checkpoint-3")),
        (["sft/checkpoint-3", "sft/model"], BOTH, ("grpo", None)),
        (["sft/checkpoint-3", "sft/model", "checkpoint-1"], BOTH, ("grpo", "checkpoint-1")),
    ],
)
def test_the_latest_start_is_where_a_run_was_stopped(run, holds, stages, start):
    folder = run(*holds)
    assert find_start(folder, stages, "latest") == Start(start[0], start[1] and folder / start[1])


def test_a_given_checkpoint_belongs_to_the_stage_in_whose_folder_it_stands(run):
    folder = run("sft/checkpoint-3")
    start = find_start(folder, BOTH, str(folder / "sft" / "checkpoint-3"))
    assert start == Start("sft", folder / "sft" / "checkpoint-3")
    assert find_start(folder, BOTH, None) == Start("sft")


@pytest.mark.parametrize(
    ("holds", "stages", "which", "words"),
    [
        ([], BOTH, "latest", "holds no complete checkpoint"),
        (["checkpoint-1"], BOTH, "checkpoint-1", "is gone"),
        (["sft/checkpoint-3"], ("grpo",), "sft/checkpoint-3", "is of the stage sft"),
        (["sft/checkpoint-3", "sft/model", "checkpoint-1"], BOTH, "sft/checkpoint-3", "a later stage has checkpoints"),
        (["sft/model"], BOTH, "sft/model", "no complete checkpoint"),
    ],
)
def test_what_cannot_be_gone_on_from_is_refused(run, holds, stages, which, words):
    folder = run(*holds)
    with pytest.raises(CheckpointError, match=words):
        find_start(folder, stages, which if which == "latest" else str(folder / which))
