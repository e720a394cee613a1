"""One optimizer of two: Muon for the matrices of layers, AdamW for the rest."""

import copy

import pytest
import torch
from torch import nn

from tools.embedded.muon import MuonAdamW

RATES = {"muon_learning_rate": 0.02, "learning_rate": 0.003}
MATRICES = {"layer.weight"}
REST = {"embed.weight", "layer.bias", "norm.weight", "norm.bias", "lm_head.weight"}


class Net(nn.Module):
    """An embedding, a layer, a norm and a head."""

    def __init__(self):
        super().__init__()
        self.embed, self.layer, self.norm, self.lm_head = nn.Embedding(6, 8), nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 6, bias=False)

    def forward(self, tokens):
        return self.lm_head(self.norm(self.layer(self.embed(tokens))))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


def back(net):
    tokens = torch.arange(6)
    loss = nn.functional.cross_entropy(net(tokens), tokens)
    net.zero_grad()
    loss.backward()
    return float(loss.detach())


def test_one_step_is_muons_for_matrices_and_adamws_for_the_rest(net):
    twin = copy.deepcopy(net)
    for one in (net, twin):
        back(one)
    named = dict(twin.named_parameters())
    assert named.keys() == MATRICES | REST
    torch.optim.Muon([named[name] for name in sorted(MATRICES)], lr=0.02, weight_decay=0.02).step()
    torch.optim.AdamW([named[name] for name in sorted(REST)], lr=0.003, weight_decay=0.02).step()
    before = copy.deepcopy(dict(net.named_parameters()))
    MuonAdamW(net.named_parameters(), **RATES).step()
    for name, value in net.named_parameters():
        assert torch.equal(value, named[name]) and not torch.equal(value, before[name]), name


def test_a_saved_state_goes_on_as_if_never_stopped(net, tmp_path):
    def train(model, optimizer, schedule, steps):
        for _ in range(steps):
            back(model)
            optimizer.step()
            schedule.step()

    def opened(model):
        optimizer = MuonAdamW(model.named_parameters(), **RATES)
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))

    optimizer, schedule = opened(net)
    train(net, optimizer, schedule, 2)
    torch.save({"net": net.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}, tmp_path / "state.pt")
    train(net, optimizer, schedule, 3)
    torch.manual_seed(1)
    again = Net()
    optimizer, schedule = opened(again)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    again.load_state_dict(state["net"])
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    train(again, optimizer, schedule, 3)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))


def test_a_schedule_moves_both_rates_and_gradients_are_zeroed(net):
    optimizer = MuonAdamW(net.named_parameters(), **RATES)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    back(net)
    optimizer.step()
    schedule.step()
    assert [group["lr"] for part in optimizer.parts for group in part.param_groups] == [0.01, 0.0015]
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in net.parameters())


def test_it_learns_by_a_closure_too(net):
    optimizer = MuonAdamW(net.named_parameters(), **RATES)
    losses = [optimizer.step(lambda: back(net)) or 0.0 for _ in range(60)]
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("frozen", [MATRICES, REST])
def test_one_kind_may_be_frozen(net, frozen):
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name not in frozen)
    before = copy.deepcopy(dict(net.named_parameters()))
    optimizer = MuonAdamW([(name, p) for name, p in net.named_parameters() if p.requires_grad], **RATES)
    back(net)
    optimizer.step()
    assert {name for name, p in net.named_parameters() if torch.equal(p, before[name])} == frozen
