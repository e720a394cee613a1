"""How many seeded faults the tests notice: change one place of the mathematics at a time, run that room's tests, count who fails.

    .venv/bin/python -m tools.mutants --count 200 --seed 0

A place is a comparison, an arithmetic or logical operator, a number, a truth value or a sign in the files of `ROOMS`; strings, annotations
and messages are left alone. A room's tests are collected once and run once, which tells the lines that each reaches and its seconds. A
place inside a function is changed in a fork, where the code of living functions is replaced, and the tests that reach its line run, quick
ones first; any other place, and one that survives so, in a copy of the repository. Tests that fail, fall over or take `--patience` times
as long have caught it.
"""

import argparse
import ast
import copy
import gc
import importlib
import json
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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
VLM, UNIT = "tests/unit/policies/vlm", "tests/unit"
ROOMS: dict[str, tuple[list[str], list[str]]] = {
    "dpg": ([f"dpg/{name}.py" for name in ("sde", "sampler", "guidance", "levels", "scheduler")], [f"{UNIT}/dpg"]),
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
            for name in (
                "portraitkit/test_stats",
                "portraitkit/test_votes",
                "benchmarks/test_stats",
                "preference_data/test_agreement",
                "preference_data/test_annotations",
            )
        ],
    ),
}
"""Files that are changed, and the tests that should notice."""
OPTIONS = ("-x", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=0", "-W", "ignore::pytest.PytestAssertRewriteWarning", "-s")
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

    number: int
    room: str
    path: str
    line: int
    lines: tuple[int, ...]  # a test that reaches one of them reaches the place
    inside: bool  # of a function: what runs when it is called
    before: str
    after: str
    start: int  # offset in the file
    end: int

    def __str__(self) -> str:
        return f"{self.number} {self.path}:{self.line}: {self.before} -> {self.after}"

    @property
    def text(self) -> str:
        """The changed file."""
        whole = (ROOT / self.path).read_text(encoding="utf-8")
        return whole[: self.start] + self.after + whole[self.end :]


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
    lines = text.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))

    def offset(line: int, column: int) -> int:
        return starts[line - 1] + len(lines[line - 1].encode()[:column].decode())

    def visit(node: ast.AST, inside: bool, statement: int) -> Iterator[Mutant]:
        if isinstance(node, ast.JoinedStr | ast.Raise | ast.Assert):
            return
        if isinstance(node, ast.stmt):
            statement = node.lineno
        if isinstance(node, ast.expr) and (other := changed(node)) is not None:
            assert node.end_lineno is not None and node.end_col_offset is not None
            start, end = offset(node.lineno, node.col_offset), offset(node.end_lineno, node.end_col_offset)
            reached = (statement, *range(node.lineno, node.end_lineno + 1))
            yield Mutant(0, room, path, node.lineno, reached, inside, ast.unparse(node), f"({ast.unparse(other)})", start, end)
        called = isinstance(node, ast.FunctionDef | ast.Lambda)
        for name, field in ast.iter_fields(node):
            if name not in ("annotation", "returns", "decorator_list"):
                for child in field if isinstance(field, list) else [field]:
                    if isinstance(child, ast.AST):
                        yield from visit(child, inside or (called and name == "body"), statement)

    yield from visit(ast.parse(text), False, 0)


def in_fork(work: Callable[[], int], patience: float, said: Path) -> int:
    """What a function returns in a fork of this process; 99 if it fails, negative where it is killed after `patience` seconds."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 99
        try:
            os.setsid()
            log = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            code = work()
        except BaseException:
            traceback.print_exc()
        os._exit(code)
    limit = time.monotonic() + patience
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() >= limit:
            os.killpg(child, signal.SIGKILL)
            ended = os.waitpid(child, 0)
            break
        time.sleep(0.02)
    return os.waitstatus_to_exitcode(ended[1])


def codes(text: str, path: Path) -> list[CodeType]:
    """The code of every function of a file, in the file's order."""
    found = []

    def visit(code: CodeType) -> None:
        for inner in code.co_consts:
            if isinstance(inner, CodeType):
                found.append(inner)
                visit(inner)

    visit(compile(text, str(path), "exec", dont_inherit=True))
    return found


def name_of(code: CodeType) -> tuple[str, int]:
    """What tells a function of a file from the others, decorated or not."""
    return code.co_qualname, max(line or 0 for *_, line in code.co_lines())


def put_in_place(mutant: Mutant) -> None:
    """The functions of the mutant's file that live in this process get the changed code."""
    path = ROOT / mutant.path
    before = codes(path.read_text(encoding="utf-8"), path)
    pairs = zip(before, codes(mutant.text, path), strict=True)
    new = {name_of(old): code for old, code in pairs if code != old}
    put = set[str]()
    gc.unfreeze()
    for function in gc.get_objects():
        if type(function) is FunctionType and function.__code__.co_filename == str(path) and name_of(function.__code__) in new:
            function.__code__ = new[name_of(function.__code__)]
            put.add(function.__qualname__)
    if not put:
        raise LookupError(f"no function of {path} holds {mutant}")


class Room:
    """A plugin of pytest that, in place of running the tests, tries mutants with them.

    Attributes:
        caught: fate of each mutant that was tried, by its number.
        seconds: of each test, by its name, quick ones first.
    """

    def __init__(self, mutants: list[Mutant], patience: float, said: Path) -> None:
        self.mutants, self.patience, self.said = mutants, patience, said
        self.seconds: dict[str, float] = {}
        self.caught: dict[int, bool] = {}

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        learnt = self.said.with_suffix(".json")
        if in_fork(lambda: self.learn(session, learnt), 3600, self.said):
            raise SystemExit(f"{self.said.read_text()[-2000:]}\nthe tests of {self.mutants[0].room} fail as they are")
        reached: dict[str, Any] = json.loads(learnt.read_text())
        items = sorted(session.items, key=lambda item: reached[item.nodeid]["seconds"])
        self.seconds = {item.nodeid: reached[item.nodeid]["seconds"] for item in items}
        print(f"{self.mutants[0].room}: {len(items)} tests, {sum(self.seconds.values()):.0f} s unharmed", flush=True)
        for mutant in self.mutants:
            if mutant.inside:
                those = [item for item in items if set(mutant.lines) & set(reached[item.nodeid]["lines"].get(mutant.path, ()))]
                limit = self.patience * sum(self.seconds[item.nodeid] for item in those) + 30
                code = in_fork(lambda mutant=mutant, those=those: self.attempt(session, mutant, those), limit, self.said)
                if code == 99:
                    raise SystemExit(f"{self.said.read_text()[-2000:]}\n{mutant} could not be tried")
                self.caught[mutant.number] = say(mutant, code != 0, f"{len(those)} tests reach it")
        return True

    def attempt(self, session: pytest.Session, mutant: Mutant, items: list[pytest.Item]) -> int:
        """1 if a test fails with the mutant in place, 0 if none does."""
        put_in_place(mutant)
        for number, item in enumerate(items):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=items[number + 1] if number + 1 < len(items) else None)
            if session.testsfailed:
                return 1
        return 0

    def learn(self, session: pytest.Session, out: Path) -> int:
        """Run all tests unharmed and note the seconds of each and the lines of the room's files that it reaches; 1 if one fails."""
        files = {str(ROOT / path): path for path in ROOMS[self.mutants[0].room][0]}
        lines: dict[str, set[int]] = {}

        def trace(frame: FrameType, event: str, argument: object) -> Any:
            if (path := files.get(frame.f_code.co_filename)) is None:
                return None
            lines.setdefault(path, set()).add(frame.f_lineno)
            return trace

        notes = {}
        for number, item in enumerate(session.items):
            lines.clear()
            started = time.monotonic()
            sys.settrace(trace)
            after = session.items[number + 1] if number + 1 < len(session.items) else None
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=after)
            sys.settrace(None)
            notes[item.nodeid] = {"seconds": time.monotonic() - started, "lines": {path: sorted(some) for path, some in lines.items()}}
        out.write_text(json.dumps(notes))
        return int(session.testsfailed > 0)


def say(mutant: Mutant, caught: bool, how: str) -> bool:
    """Print what became of a mutant; returns whether it was caught."""
    print(f"{'caught' if caught else 'SURVIVED'} {mutant} ({how})", flush=True)
    return caught


def try_copy(mutants: list[Mutant], folder: Path, tests: list[str], patience: float, said: Path) -> dict[int, bool]:
    """Whether the tests of a copy of the repository notice the mutants that are there when their file is imported, by number."""

    def run() -> int:
        os.chdir(folder)
        os.environ["PYTHONPATH"] = sys.path[0] = str(folder)
        return int(pytest.main([*OPTIONS, *tests]))

    caught = {}
    if mutants and in_fork(run, patience, said):
        raise SystemExit(f"{said.read_text()[-2000:]}\nthe tests of {mutants[0].room} fail in a copy")
    for mutant in mutants:
        file = folder / mutant.path
        file.write_text(mutant.text, encoding="utf-8")
        caught[mutant.number] = say(mutant, in_fork(run, patience, said) != 0, "imported with it")
        shutil.copy2(ROOT / mutant.path, file)
    return caught


def try_room(mutants: list[Mutant], patience: float, folder: Path) -> dict[int, bool]:
    """Fate of the mutants of one room, by number."""
    room, fates = mutants[0].room, folder / "fates.json"

    def collect_and_try() -> int:
        os.dup2(out, 1)
        sys.path[0] = str(ROOT)
        os.chdir(ROOT)
        plugin = Room(mutants, patience, folder / "said")
        code = int(pytest.main([*OPTIONS, "--no-header", "--no-summary", *ROOMS[room][1]], plugins=[plugin]))
        fates.write_text(json.dumps([plugin.caught, plugin.seconds]))
        return code

    out = os.dup(1)
    if in_fork(collect_and_try, 24 * 3600, folder / "errors") not in (0, 5):
        raise SystemExit(f"{(folder / 'errors').read_text()[-3000:]}\nthe tests of {room} could not be tried")
    os.close(out)
    inside, seconds = json.loads(fates.read_text())
    limit = patience * sum(seconds.values()) + 60
    caught = {int(number): fate for number, fate in inside.items()}
    again = [mutant for mutant in mutants if not caught.get(mutant.number)]  # a function may have run when its file was imported
    return caught | try_copy(again, folder / "copy", list(seconds), limit, folder / "said")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="places to change")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of places")
    parser.add_argument("--rooms", nargs="+", choices=ROOMS, default=list(ROOMS), help="try those of the places that lie in these rooms")
    parser.add_argument("--numbers", nargs="+", type=int, help="try these of the places alone, as a run printed them")
    parser.add_argument("--patience", type=float, default=5.0, help="times the unharmed tests' seconds")
    options = parser.parse_args()
    for module in SLOW:
        importlib.import_module(module)
    everywhere = [mutant for room in ROOMS for path in ROOMS[room][0] for mutant in places(room, path)]
    drawn = random.Random(options.seed).sample(everywhere, min(options.count, len(everywhere)))
    chosen = [replace(mutant, number=number) for number, mutant in enumerate(drawn, 1)]
    chosen = [mutant for mutant in chosen if mutant.room in options.rooms and mutant.number in (options.numbers or [mutant.number])]
    caught, seen = Counter[str](), Counter[str]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for path in subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines():
            (folder / "copy" / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / path, folder / "copy" / path)
        for room in options.rooms:
            if those := [mutant for mutant in chosen if mutant.room == room]:
                fates = try_room(those, options.patience, folder)
                seen[room], caught[room] = len(fates), sum(fates.values())
                print(f"{room}: {caught[room]} of {seen[room]} caught", flush=True)
    print(f"{caught.total()} of {seen.total()} caught; {len(everywhere)} places, seed {options.seed}")


if __name__ == "__main__":
    main()
