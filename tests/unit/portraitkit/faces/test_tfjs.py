import pytest
import torch

from portraitkit.errors import WeightsError
from portraitkit.faces import tfjs
from portraitkit.faces.tfjs import GraphModel, load_graph, pad_same, read_json


def test_same_padding_puts_the_odd_pixel_last():
    x = torch.ones(1, 1, 4, 5)
    padded = pad_same(x, (3, 3), 2)
    assert padded.shape == (1, 1, 5, 7)  # 4 rows need 1 more, 5 columns need 2
    assert padded[0, 0, :, 1].tolist() == [1, 1, 1, 1, 0]
    assert padded[0, 0, 0].tolist() == [0, 1, 1, 1, 1, 1, 0]
    assert pad_same(x, (1, 1), 1) is x


def test_a_batch_equals_its_parts():
    net = GraphModel("facemesh").eval()
    pictures = torch.rand(2, 3, 192, 192, generator=torch.Generator().manual_seed(0))
    together = net(pictures)
    assert sorted(tuple(value.shape) for value in together.values()) == [(2, 1), (2, 266), (2, 1404)]
    for name, value in net(pictures[1:]).items():
        assert torch.allclose(value[0], together[name][1], atol=1e-3)


def test_weights_are_frozen():
    assert list(GraphModel("blazeface").parameters()) == []


def test_an_unknown_operator_is_named(monkeypatch):
    model = read_json("blazeface.json")
    model["modelTopology"]["node"][-1]["op"] = "Softsign"
    monkeypatch.setattr(tfjs, "read_json", lambda name: model)
    with pytest.raises(WeightsError, match=r"blazeface\.json uses unknown operators Softsign"):
        GraphModel("blazeface")


def test_loading_leaves_the_random_state_alone_and_happens_once():
    before = torch.random.get_rng_state()
    load_graph.cache_clear()
    first = load_graph("blazeface", torch.device("cpu"))
    assert torch.equal(before, torch.random.get_rng_state())
    assert load_graph("blazeface", torch.device("cpu")) is first


def test_a_first_call_in_inference_mode_does_not_rule_out_gradients():
    load_graph.cache_clear()
    with torch.inference_mode():
        load_graph("facemesh", torch.device("cpu"))(torch.zeros(1, 3, 192, 192))
    picture = torch.zeros(1, 3, 192, 192, requires_grad=True)
    sum(value.sum() for value in load_graph("facemesh", torch.device("cpu"))(picture).values()).backward()
    assert picture.grad is not None and picture.grad.abs().sum() > 0


def test_autocast_does_not_change_the_points():
    picture = torch.rand(1, 3, 192, 192, generator=torch.Generator().manual_seed(0))
    net = load_graph("facemesh", torch.device("cpu"))
    plain = net(picture)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = net(picture)
    assert all(torch.equal(plain[name], cast[name]) for name in plain)
