"""Work divided among processes, and what is refused when their number changes."""

import pytest

from portraitkit import parallel
from portraitkit.errors import CheckpointError
from portraitkit.parallel import divided
from portraitkit.runs.checkpoint import check_processes, save_checkpoint


@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_item_is_worked_on_once_and_results_keep_the_order(monkeypatch, count):
    items, seen = list("abcdefg"), []

    def work(some):
        seen.extend(some)
        return [item.upper() for item in some]

    monkeypatch.setattr(parallel, "processes", lambda: (count, 0))
    shares = [[item.upper() for item in items[mine::count]] for mine in range(count)]
    monkeypatch.setattr(parallel, "gathered", lambda value: [value, *shares[1:]])
    assert divided(items, work) == list("ABCDEFG") and seen == items[::count]


def test_fewer_items_than_processes(monkeypatch):
    monkeypatch.setattr(parallel, "processes", lambda: (3, 2))
    monkeypatch.setattr(parallel, "gathered", lambda value: [["A"], ["B"], value])
    assert divided(["a", "b"], lambda some: [item.upper() for item in some]) == ["A", "B"]


def test_a_checkpoint_wants_as_many_processes_as_wrote_it(tmp_path):
    one, two = tmp_path / "checkpoint-1", tmp_path / "checkpoint-2"
    for folder, names in ((one, ["rng_state.pth"]), (two, ["rng_state_0.pth", "rng_state_1.pth"])):
        folder.mkdir()
        for name in names:
            (folder / name).write_bytes(b"")
    check_processes(None, 4)
    check_processes(one, 1)
    check_processes(two, 2)
    with pytest.raises(CheckpointError, match=r"written by 1 process, this run has 2"):
        check_processes(one, 2)
    with pytest.raises(CheckpointError, match=r"written by 2 processes, this run has 1; .*--nproc-per-node 2, or use --allow-changed"):
        check_processes(two, 1)
    assert check_processes(two, 2, allow_changed=True) is None
    said = check_processes(two, 1, allow_changed=True)
    assert said is not None and "an update takes 1/2 of the rows" in said
    (two / "global_step2").mkdir()
    with pytest.raises(CheckpointError, match=r"share of DeepSpeed's optimiser: --allow-changed cannot"):
        check_processes(two, 1, allow_changed=True)


def test_a_checkpoint_of_ours_says_how_many_processes_wrote_it(tmp_path):
    two = save_checkpoint(tmp_path, 3, {}, {"processes": 2}, limit=None)
    assert check_processes(two, 2) is None and check_processes(two, 4, allow_changed=True) is None
    with pytest.raises(CheckpointError, match="checkpoint-3: was written by 2 processes, this run has 4; start 2.* the same to the bit"):
        check_processes(two, 4)
    assert check_processes(save_checkpoint(tmp_path, 4, {}, {}, limit=None), 1) is None  # from before the number was kept
    (two / "state.json").write_text("{")
    assert check_processes(two, 4) is None  # damaged: its reader says so
