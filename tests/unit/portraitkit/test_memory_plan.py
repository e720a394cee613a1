"""The planner's arithmetic against real optimisers, and its advice against its own plans."""

from dataclasses import dataclass, replace

import pytest
import torch

from portraitkit.errors import ConfigError
from portraitkit.memory.plan import CONTEXT, GIB, Memory, Shards, Trained, check_fits, device_limit, human, set_to
from portraitkit.memory.trace import size_of


def state_bytes(optimizer) -> int:
    return size_of(value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor))


def trained(dtype) -> tuple[list[torch.nn.Parameter], Trained]:
    parameters = [torch.nn.Parameter(torch.ones(shape, dtype=dtype)) for shape in ((64, 128), (100,))]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    return parameters, Trained(tuple((p.numel(), p.element_size()) for p in parameters))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adamw_keeps_what_the_plan_says(dtype):
    parameters, sizes = trained(dtype)
    optimizer = torch.optim.AdamW(parameters)
    optimizer.step()
    assert state_bytes(optimizer) == sizes.states("adamw", Shards()) + 2 * 4  # and the number of steps


def test_adamw_in_8_bits_keeps_what_the_plan_says():
    bitsandbytes = pytest.importorskip("bitsandbytes")
    parameters, sizes = trained(torch.float32)
    optimizer = bitsandbytes.optim.AdamW8bit(parameters)
    optimizer.step()
    kept = sum(size_of([value]) for state in optimizer.state.values() for name, value in state.items() if name in SAVED)
    assert kept == sizes.states("adamw_8bit", Shards())


SAVED = ("state1", "state2", "absmax1", "absmax2")


def test_shares_of_devices():
    half = Trained(((1000, 2),))
    assert (half.size, half.values) == (2000, 1000)
    assert half.states("adamw", Shards("zero2", 4)) == 12 * 250  # float32 copy and two moments
    assert half.states("adamw", Shards("fsdp2", 4)) == 1000
    assert Shards("zero2", 4).of_weights == 1 and Shards("zero3", 4).of_weights == 4 and Shards("none", 4).of_state == 1


@dataclass(frozen=True)
class Run:
    """A run whose memory is easy to see."""

    base: int = 10
    rows: int = 8
    devices: int = 1
    tiles: bool = False


def plan(run: Run) -> Memory:
    phases = {"update": run.rows * GIB, "decoding": GIB // 4 if run.tiles else 2 * GIB}
    return Memory(1, 1, {"weights": run.base * GIB // run.devices}, phases, gpu=False)


CHANGES = (
    lambda run: replace(run, rows=4) if run.rows > 4 else None,
    lambda run: set_to(run, rows=1),
    lambda run: set_to(run, tiles=True),
    lambda run: replace(run, base=3) if run.base > 3 else None,
)
MORE_DEVICES = (lambda run: set_to(run, devices=2),)


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        (14, "; --rows 4 makes it fit: 14.00 GiB"),
        (12, "; --rows 1 makes it fit: 12.00 GiB"),
        (11, "; --base 3 makes it fit: 11.00 GiB"),
        (5, "; --base 3 --rows 1 makes it fit: 5.00 GiB"),
        (4, "; --base 3 --rows 1 --tiles makes it fit: 4.00 GiB"),  # tiles save nothing before rows do
        (3, "; --base 3 --rows 1 --devices 2 --tiles makes it fit: 2.50 GiB"),  # only where nothing else helps
        (2, "; no change that is known here makes it fit: with all of them it needs 2.50 GiB"),
    ],
)
def test_what_cannot_fit_is_refused_with_what_would(limit, words):
    with pytest.raises(ConfigError) as refusal:
        check_fits(Run(), plan(Run()), limit * GIB, plan, CHANGES, MORE_DEVICES)
    message = str(refusal.value)
    assert message.endswith(words) and "needs 18.00 GiB on a device (while: update)" in message and "\n" not in message


def test_what_fits_passes_and_an_unknown_device_refuses_nothing():
    check_fits(Run(), plan(Run()), 18 * GIB, plan, CHANGES)
    check_fits(Run(), plan(Run()), None, plan, CHANGES)


def test_a_gpu_takes_more_than_its_tensors():
    cpu = plan(Run())
    gpu = replace(cpu, gpu=True)
    assert cpu.peak == cpu.tensors == 18 * GIB and gpu.peak == cpu.peak + CONTEXT + int(0.05 * cpu.peak)
    assert ("peak, estimated", "18.00 GiB on each device, while: update") in cpu.lines()


def test_sizes_of_devices():
    assert device_limit(24, "cuda") == 24 * GIB and device_limit(None, "cpu") is None
    assert human(3 * GIB) == "3.00 GiB" and human(2**20) == "1.0 MiB"


def test_without_a_gpu_a_plan_says_which_ones_it_fits(capsys):
    def on_gpu(run: Run) -> Memory:
        return replace(plan(run), gpu=True)

    check_fits(large := Run(base=30, rows=20), on_gpu(large), None, on_gpu, CHANGES, MORE_DEVICES)
    told = "no GPU here; of 24, 48, 80, 141 GiB the smallest that it fits: "
    assert " ".join(capsys.readouterr().out.split()) == f"{told}80 GiB as it is, 24 GiB with --base 3 --rows 4 (7.95 GiB)"
    check_fits(Run(), on_gpu(Run()), None, on_gpu, CHANGES)
    assert " ".join(capsys.readouterr().out.split()) == f"{told}24 GiB as it is"
    with pytest.raises(ConfigError, match="has 141.00 GiB; --base 3 makes it fit"):
        check_fits(huge := Run(base=200), on_gpu(huge), None, on_gpu, CHANGES)
