"""How many seeded faults the tests notice: change one place of the mathematics at a time, run that room's tests, count who fails.

    .venv/bin/python -m tools.mutants --count 200 --seed 0

A place is a comparison, an arithmetic or logical operator, a number, a truth value or a sign in the files of `ROOMS`; strings, annotations
and messages are left alone. The tests run in a copy of the repository; tests that fail, fall over or take `--patience` times as long as
without a fault have caught it.
"""

import argparse
import ast
import copy
import importlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
VLM, UNIT = "tests/unit/policies/vlm", "tests/unit"
ROOMS: dict[str, tuple[list[str], list[str]]] = {
    "dpg": ([f"dpg/{name}.py" for name in ("sde", "sampler", "guidance", "levels", "windows", "scheduler")], [f"{UNIT}/dpg"]),
    "grpo": (["portraitkit/grpo.py"], [f"{UNIT}/portraitkit/test_grpo.py"]),
    "verifiable": (["reward_models/verifiable.py"], [f"{UNIT}/reward_models/test_verifiable.py", f"{UNIT}/reward_models/test_grain.py"]),
    "makeup": (
        ["policies/vlm/tasks/makeup.py", "policies/vlm/tasks/makeup_scores.py"],
        [f"{VLM}/test_{name}.py" for name in ("published_rewards", "makeup", "makeup_rows", "constants")],
    ),
    "emotion": (
        ["policies/vlm/tasks/emotion.py", "policies/vlm/tasks/emotion_metrics.py"],
        [f"{VLM}/test_{name}.py" for name in ("published_rewards", "emotion", "emotion_metrics", "constants")],
    ),
    "area": (["policies/vlm/tasks/shape_area.py"], [f"{VLM}/test_shape_area.py"]),
    "contract": (["preference_data/contract.py"], [f"{UNIT}/preference_data/test_contract.py"]),
    "statistics": (
        ["portraitkit/stats.py", "portraitkit/votes.py", "benchmarks/stats.py", "preference_data/annotations.py"],
        [
            f"{UNIT}/{name}.py"
            for name in ("portraitkit/test_stats", "portraitkit/test_votes", "benchmarks/test_stats", "preference_data/test_agreement")
        ],
    ),
}
"""Files that are changed, and the tests that should notice."""
SAID = "mutants.log"  # What pytest printed last
OPTIONS = ("-x", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=0", "-W", "ignore::pytest.PytestAssertRewriteWarning")
SLOW = ("torch", "scipy.stats", "scipy.optimize", "diffusers", "transformers", "PIL.Image", "rich.console", "torchvision")
"""What takes long to import and is never changed: imported once, here; the tests run in forks."""

OTHER: dict[type[ast.AST], type[ast.AST]] = {
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.In: ast.NotIn},
    **{ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult},
    **{ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.And: ast.Or, ast.Or: ast.And, ast.BitAnd: ast.BitOr},
    **{ast.BitOr: ast.BitAnd},
}


@dataclass(frozen=True)
class Mutant:
    """One place and what stands there instead."""

    room: str
    path: str
    line: int
    before: str
    after: str
    start: int  # offset in the file
    end: int


def changed(node: ast.AST) -> ast.AST | None:
    """The node with its operator, number or sign changed; None where there is nothing to change."""
    node = copy.deepcopy(node)
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        node.ops = [OTHER[type(node.ops[0])]()]
    elif isinstance(node, ast.BinOp | ast.BoolOp) and type(node.op) in OTHER:
        node.op = OTHER[type(node.op)]()
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Not):
        return node.operand
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        node.value = not node.value
    elif isinstance(node, ast.Constant) and isinstance(node.value, int):
        node.value += 1
    elif isinstance(node, ast.Constant) and isinstance(node.value, float):
        node.value = 2 * node.value or 1.0
    else:
        return None
    return node


def places(room: str, path: str) -> Iterator[Mutant]:
    """Every place of a file, from its top."""
    text = (ROOT / path).read_text(encoding="utf-8")
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))

    def visit(node: ast.AST) -> Iterator[Mutant]:
        if isinstance(node, ast.JoinedStr | ast.Raise | ast.Assert):
            return
        if isinstance(node, ast.expr) and (other := changed(node)) is not None:
            assert node.end_lineno is not None and node.end_col_offset is not None
            lines = text.splitlines(keepends=True)
            start = starts[node.lineno - 1] + len(lines[node.lineno - 1].encode()[: node.col_offset].decode())
            end = starts[node.end_lineno - 1] + len(lines[node.end_lineno - 1].encode()[: node.end_col_offset].decode())
            yield Mutant(room, path, node.lineno, ast.unparse(node), f"({ast.unparse(other)})", start, end)
        for name, field in ast.iter_fields(node):
            if name not in ("annotation", "returns", "decorator_list"):
                for child in field if isinstance(field, list) else [field]:
                    if isinstance(child, ast.AST):
                        yield from visit(child)

    yield from visit(ast.parse(text))


def run_tests(folder: Path, tests: list[str], patience: float) -> bool:
    """Whether the tests of a folder pass in time, in a fork of this process."""
    child = os.fork()
    if child == 0:
        code = 70
        try:
            os.setsid()
            os.chdir(folder)
            said = os.open(SAID, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(said, 1)
            os.dup2(said, 2)
            os.environ["PYTHONPATH"] = sys.path[0] = str(folder)
            code = int(pytest.main([*OPTIONS, *tests]))
        except BaseException:
            traceback.print_exc()
        os._exit(code)
    limit = time.monotonic() + patience
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() >= limit:
            os.killpg(child, signal.SIGKILL)
            ended = os.waitpid(child, 0)
            break
        time.sleep(0.05)
    return ended[1] == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="places to change")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of places")
    parser.add_argument("--start", type=int, default=0, help="leave out the first of them, as a run that was stopped had done those")
    parser.add_argument("--rooms", nargs="+", choices=ROOMS, default=list(ROOMS), help="rooms to choose places from")
    parser.add_argument("--patience", type=float, default=5.0, help="times the unharmed tests' seconds")
    options = parser.parse_args()
    for module in SLOW:
        importlib.import_module(module)
    everywhere = [mutant for room in options.rooms for path in ROOMS[room][0] for mutant in places(room, path)]
    chosen = random.Random(options.seed).sample(everywhere, min(options.count, len(everywhere)))[options.start :]
    caught, seen = Counter[str](), Counter[str]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "copy"
        for path in subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / path, folder / path)
        seconds = {}
        for room in dict.fromkeys(mutant.room for mutant in chosen):
            started = time.monotonic()
            if not run_tests(folder, ROOMS[room][1], 3600):
                raise SystemExit(f"{(folder / SAID).read_text()[-2000:]}\nthe tests of {room} fail as they are")
            seconds[room] = time.monotonic() - started
            print(f"{room}: {seconds[room]:.0f} s unharmed", flush=True)
        for number, mutant in enumerate(chosen, options.start + 1):
            file = folder / mutant.path
            whole = file.read_text(encoding="utf-8")
            file.write_text(whole[: mutant.start] + mutant.after + whole[mutant.end :], encoding="utf-8")
            passed = run_tests(folder, ROOMS[mutant.room][1], options.patience * seconds[mutant.room] + 10)
            file.write_text(whole, encoding="utf-8")
            seen[mutant.room] += 1
            caught[mutant.room] += not passed
            fate = "survived" if passed else "caught"
            print(f"{number} {fate}: {mutant.path}:{mutant.line}: {mutant.before} -> {mutant.after}", flush=True)
    for room, count in seen.items():
        print(f"{room}: {caught[room]} of {count} caught")
    print(f"{caught.total()} of {seen.total()} caught; {len(everywhere)} places, seed {options.seed}")


if __name__ == "__main__":
    main()
