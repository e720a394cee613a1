"""Groups divided among processes: each is taken once, and parts of any size add up to the whole."""

from dataclasses import replace

import pytest
import torch

from policies.retoucher.evaluate import evaluate_policy, evaluation_set
from policies.retoucher.model.training import check_sharding
from policies.retoucher.processes import Processes, open_processes
from policies.retoucher.rank_groups import NO_SCORES, GroupScores, gather_scores, roll_out_groups
from policies.retoucher.rollout import noise_of_groups
from policies.retoucher.update import NO_FIGURES, UpdateFigures, accumulate_gradients, draw_anchors
from portraitkit.errors import ConfigError, DataError


class Replayed(Processes):
    """A process of several whose exchanges are played from what was noted before."""

    def gather(self, value):
        return self.noted


def replayed(rank, count, noted):
    process = Replayed(rank, count)
    process.noted = noted
    return process


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("total", [1, 2, 5, 6])
def test_everything_is_taken_once_evenly_and_comes_back_in_order(count, total):
    shares = [Processes(rank, count).share(total) for rank in range(count)]
    assert sorted(number for share in shares for number in share) == list(range(total))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    rows = [torch.tensor([[10 * number, 10 * number + 1] for number in share]).reshape(-1) for share in shares]
    assert Processes(0, count).in_order(rows, 2).tolist() == [10 * number + one for number in range(total) for one in (0, 1)]
    assert Processes(0, count).in_order([part for part in rows if len(part)], 2).shape == (2 * total,)


@pytest.mark.parametrize("shared", [True, False])
def test_noise_belongs_to_the_candidate_whoever_draws_it(backbone, config, shared):
    scheduler = config.scheduler(backbone.sigmas(config.num_steps), 4)
    given = {"group_size": 3, "shared_noise": shared, "seed": 5, "iteration": 4}
    whole = noise_of_groups(backbone, scheduler.drawn_steps, [0, 1, 2], **given)
    parts = [noise_of_groups(backbone, scheduler.drawn_steps, groups, **given) for groups in ([0, 2], [1])]
    for part, groups in zip(parts, ([0, 2], [1]), strict=True):
        members = [group * 3 + member for group in groups for member in range(3)]
        assert torch.equal(part.start, whole.start[groups if shared else members])
        assert all(torch.equal(part.steps[index], whole.steps[index][members]) for index in scheduler.drawn_steps)
    other = noise_of_groups(backbone, scheduler.drawn_steps, [0, 1, 2], **(given | {"iteration": 5}))
    rows = [row for noise in (whole, other) for values in (noise.start, *noise.steps.values()) for row in values.flatten(1)]
    assert len({tuple(row[:4].tolist()) for row in rows}) == len(rows)


@pytest.mark.parametrize(("division", "padded"), [(([0, 2], [1]), False), (([0], [1, 2]), True)])
@pytest.mark.parametrize("method", [{}, {"loss": "neighbor", "dpg": False, "neighbor_anchors": 2, "segments": 1}], ids=["grpo", "neighbor"])
def test_gradients_of_the_parts_add_up_to_that_of_the_whole(make_trainer, config, division, padded, method):
    config = replace(config, photos_per_step=3, kl_beta=0.1, micro_batch=4, num_steps=3, **method)
    trainer = make_trainer(config)
    with torch.no_grad():
        for parameter in trainer.adapter.values():
            parameter.add_(0.01)
    scheduler = config.scheduler(trainer.sigmas, 0)
    advantages = torch.linspace(-1, 1, 12)
    advantages[4:8] = 0  # a group without spread: nothing is computed for it

    def gradients(groups, extra):
        own, _ = roll_out_groups(trainer.backbone, trainer.source, trainer.rewards, scheduler, config, 0, groups)
        trainer.optimizer.zero_grad(set_to_none=True)
        mine = advantages.view(3, 4)[groups].flatten()
        given = (trainer.backbone, own.condition, own.rollout, mine, torch.arange(len(groups)), config.objective)
        in_step = (lambda calls: [count + 2 for count in calls]) if extra else None
        options = {"candidates": 12, "in_step": in_step}
        if method:
            options |= {"candidates": 6, "anchors": draw_anchors(groups, config.group_size, 2, seed=0, iteration=0)}
        figures = accumulate_gradients(*given, micro_batch=config.micro_batch, **options)
        return figures, {name: p.grad.clone() for name, p in trainer.adapter.items() if p.grad is not None}

    figures, whole = gradients([0, 1, 2], False)
    parts = [gradients(groups, padded) for groups in division]
    total = UpdateFigures.total([part for part, _ in parts] + [NO_FIGURES])
    assert (total.loss, total.kl) == pytest.approx((figures.loss, figures.kl), rel=1e-4)
    assert (total.evaluations, total.clipped) == (figures.evaluations, figures.clipped)
    for name, gradient in whole.items():
        summed = sum(part.get(name, torch.zeros_like(gradient)) for _, part in parts)
        torch.testing.assert_close(summed, gradient, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize(("count", "total"), [(2, 3), (4, 3), (1, 2)])
def test_what_is_told_is_in_the_order_of_the_groups(count, total):
    def told(groups):
        values = torch.tensor([10.0 * group + member for group in groups for member in range(2)])
        return GroupScores({"texture": values}, [f"photo {group}" for group in groups], len(groups), 0.5, {"asked": len(groups)}, -values)

    noted = [told(share) if (share := Processes(rank, count).share(total)) else NO_SCORES for rank in range(count)]
    everything, whole = gather_scores(replayed(0, count, noted), noted[0], 2), told(range(total))
    assert torch.equal(everything.parts["texture"], whole.parts["texture"]) and torch.equal(everything.checked, whole.checked)
    assert (everything.ids, everything.evaluations, everything.judged) == (whole.ids, whole.evaluations, whole.judged)


def test_an_evaluation_in_parts_is_the_evaluation(make_trainer, config):
    trainer = make_trainer(config)
    data = evaluation_set(trainer.backbone, trainer.source, "validation", 3, prompt=config.prompt, noise_seed=7)
    whole = evaluate_policy(trainer.backbone, data, trainer.rewards, 2)
    parts = []
    for rank in range(2):
        part = data.select(torch.tensor(Processes(rank, 2).share(3)))
        parts.append(evaluate_policy(trainer.backbone, part, trainer.rewards, 2))
    process = replayed(0, 2, [None, None])
    process.together = lambda work: parts[0]
    process.gather = lambda value: parts
    together = evaluate_policy(trainer.backbone, data, trainer.rewards, 2, process)
    torch.testing.assert_close(together.pictures, whole.pictures, rtol=1e-3, atol=1e-4)
    for name, values in whole.values.items():
        torch.testing.assert_close(together.values[name], values, rtol=1e-3, atol=1e-3)


def test_an_error_of_one_process_is_that_of_all():
    process = replayed(0, 2, [None, DataError("no such photo; add it")])
    with pytest.raises(DataError, match="no such photo"):
        process.together(lambda: 1)
    assert process.failed


@pytest.mark.parametrize(
    ("device", "missing", "words"),
    [("cpu", "MASTER_PORT", "MASTER_PORT missing beside it"), ("cuda:1", None, "a GPU each"), ("cuda", None, "process 7 finds")],
)
def test_a_launch_that_cannot_work_is_one_line(monkeypatch, device, missing, words):
    names = {"WORLD_SIZE": "9", "RANK": "7", "LOCAL_RANK": "7", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    if missing:
        monkeypatch.delenv(missing)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match=words), open_processes(device):
        pass


@pytest.mark.parametrize(
    ("changes", "processes", "words"),
    [
        ({}, 1, "there is one"),
        ({"photos_per_step": 3}, 2, "try 4"),
        ({"photos_per_step": 2, "validation_photos": 1}, 2, "--validation-photos 1"),
    ],
)
def test_what_cannot_be_divided_is_refused(config, changes, processes, words):
    with pytest.raises(ConfigError, match=words):
        check_sharding(replace(config, sharding="fsdp2", **changes), processes)
    check_sharding(replace(config, **changes), processes)


@pytest.mark.parametrize("world", [None, "2"])
def test_one_process_needs_no_launcher_and_a_lone_world_size_is_none(monkeypatch, world):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if world:
        monkeypatch.setenv("WORLD_SIZE", world)  # as some clusters do
    with open_processes("cpu") as processes:
        assert (processes.rank, processes.count, processes.share(3), processes.first) == (0, 1, [0, 1, 2], True)
        assert processes.only_first(lambda: 4) == 4 and processes.gather(5) == [5]
