"""A coverage-guided fuzzer on what reads other people's text and pictures; needs the extra `fuzz` (Atheris, libFuzzer for Python).

    .venv/bin/python -m tools.fuzz --seconds 60

Each target gets that long, in a process of its own, starting from valid inputs. Answers of models have no exception at all: what cannot be
read is a value, and every reward is a finite number or None. Files may raise the UserError that is documented, and nothing else. An input
that breaks this stays in OUTPUT, named after its target; `--input FILE` tries it again.
"""

import argparse
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

Target = Callable[[bytes], object]
TASKS = ("makeup", "makeup-lips", "emotion", "area")
INSTRUMENTED = ["portraitkit", "preference_data", "policies.vlm.tasks", "policies.vlm.score", "json", "tomllib", "PIL"]


def text_of(data: bytes) -> str:
    """Any text, half surrogates included."""
    return data.decode("utf-8", errors="surrogateescape")


def answers_of(name: str) -> tuple[Target, list[bytes]]:
    """A task's answers: both modes, on a row with labels."""
    from policies.vlm.tasks import load_task
    from portraitkit.vlm.rows import make_rows

    task = load_task(name)
    rows = make_rows(task, "train", 2, 0)

    def target(data: bytes) -> None:
        for row in rows:
            for mode in ("paper", "fixed"):
                score = task.score(text_of(data), row.truth, mode)
                assert math.isfinite(score.reward) and all(part is None or math.isfinite(part) for part in score.parts.values()), score

    return target, [task.perfect(row.truth).encode() for row in rows]


def preference() -> tuple[Target, list[bytes]]:
    """Verdicts of a judge in both forms, and ratings."""
    from policies.vlm.score import read_score
    from preference_data.contract import Answer, read_answer, read_brief, write_answer, write_brief
    from preference_data.schema import DIMENSIONS

    def target(data: bytes) -> None:
        text = text_of(data)
        found = read_answer(text)
        assert not isinstance(found, Answer) or read_answer(write_answer(found)) == found, found
        brief = read_brief(text)
        if isinstance(brief, Answer):
            again = read_brief(write_brief(brief))
            assert isinstance(again, Answer) and (again.scores, again.better) == (brief.scores, brief.better), brief
        score, _ = read_score(text)
        assert score is None or 1 <= score <= 10

    answer = Answer(dict.fromkeys(DIMENSIONS, (5, 3)), "first", "because")
    return target, [write_answer(answer).encode(), write_brief(answer).encode(), b"<score>7</score>"]


def jsonl() -> tuple[Target, list[bytes]]:
    """Rows of pair sets, and JSON lines of any kind."""
    from portraitkit.errors import DataError
    from portraitkit.files.jsonl import read_json_lines, read_objects, write_lines
    from preference_data.schema import pair_of

    path = Path(tempfile.mkdtemp()) / "x.jsonl"

    def target(data: bytes) -> None:
        path.write_bytes(data)
        found = read_json_lines(path, pair_of)
        assert len(found.rows) == len(found.lines)
        objects = read_json_lines(path, dict).rows
        for strict in (True, False):
            try:
                rows = [row for _, row in read_objects(path, strict=strict)]
            except DataError:
                continue
            if strict:
                assert rows == objects
                write_lines(path, rows)
                assert [row for _, row in read_objects(path, strict=True)] == rows
                path.write_bytes(data)

    pair = {"id": "1", "input_file_name": "a.png", "a_file_name": "b.png", "b_file_name": "c.png", "overall": "a", "identity": "x"}
    return target, [json.dumps(pair).encode() + b"\n", b'\xef\xbb\xbf{"a": [1, 2.5, null, "\\ud800"]}\r\n\r\n{}', b'{"a": 1, "a": NaN}']


def recipes() -> tuple[Target, list[bytes]]:
    """TOML files as `--config` of two commands."""
    from policies.retoucher.config import RetoucherConfig
    from policies.vlm.align.align_config import AlignVlmConfig
    from portraitkit.config import load_config
    from portraitkit.errors import ConfigError

    path = Path(tempfile.mkdtemp()) / "x.toml"

    def target(data: bytes) -> None:
        path.write_bytes(data)
        for config in (RetoucherConfig, AlignVlmConfig):
            try:
                load_config(config, ["--config", str(path)], prog="fuzz")
            except ConfigError as error:
                assert "\n" not in str(error), error

    folder = Path(__file__).parents[1] / "portraitkit" / "recipes"
    return target, [(folder / f"{name}.toml").read_bytes() for name in ("tiny_retoucher", "tiny_vlm", "tiny_nft")]


def pictures() -> tuple[Target, list[bytes]]:
    """The one decoder."""
    import numpy as np
    from PIL import Image

    from portraitkit.errors import ImageError
    from portraitkit.pictures.images import decode_image

    def target(data: bytes) -> None:
        try:
            pixels = decode_image(data, "x.png", max_pixels=2**16).pixels
        except ImageError as error:
            assert "\n" not in str(error), error
            return
        assert pixels.shape[0] == 3 and float(pixels.min()) >= 0 and float(pixels.max()) <= 1

    seeds, small = [], np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    kinds = [("PNG", "RGBA"), ("PNG", "P"), ("PNG", "I;16"), ("JPEG", "CMYK"), ("JPEG", "RGB"), ("GIF", "P"), ("WEBP", "RGB"), ("BMP", "1")]
    for kind, mode in [*kinds, ("TIFF", "F"), ("TIFF", "LAB"), ("PPM", "RGB"), ("ICO", "RGBA"), ("TGA", "RGB"), ("JPEG2000", "RGB")]:
        base = Image.fromarray(small).convert("L").convert("I").convert(mode) if mode == "I;16" else Image.fromarray(small)
        if mode not in ("LAB", "I;16"):
            base = base.convert(mode)
        out, exif = BytesIO(), Image.Exif()
        exif[0x0112] = 6
        base.save(out, kind, **({"exif": exif} if kind in ("PNG", "JPEG", "WEBP", "TIFF") else {}))
        seeds.append(out.getvalue())
    return target, seeds


TARGETS: dict[str, Callable[[], tuple[Target, list[bytes]]]] = {
    "preference": preference,
    **{name: (lambda name=name: answers_of(name)) for name in TASKS},
    "jsonl": jsonl,
    "recipes": recipes,
    "pictures": pictures,
}


def fuzz(name: str, seconds: int, seed: int, output: Path) -> None:
    """Fuzz one target in this process, which libFuzzer ends."""
    import atheris  # pyright: ignore[reportMissingModuleSource]  # an extra

    with atheris.instrument_imports(include=INSTRUMENTED):
        target, seeds = TARGETS[name]()
    corpus = output / f"{name}-corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(seeds):
        target(data)  # valid inputs are accepted
        (corpus / f"seed{number}").write_bytes(data)
    limits = [f"-max_total_time={seconds}", f"-seed={seed}", "-max_len=8192", "-rss_limit_mb=6000", "-timeout=60", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *limits, f"-artifact_prefix={output / name}-", str(corpus)], target)
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--seed", type=int, default=1, help="of the mutations")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--output", type=Path, default=Path("runs/fuzz"))
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--input", type=Path, help="one input to be tried on the targets, without fuzzing")
    options = parser.parse_args()
    if options.input is not None:
        for name in options.targets:
            TARGETS[name]()[0](options.input.read_bytes())
        return
    if options.alone:
        fuzz(options.targets[0], options.seconds, options.seed, options.output)
    if find_spec("atheris") is None:
        parser.error("Atheris is not installed; run make fuzz, or pip install 'atheris>=3.0'")
    options.output.mkdir(parents=True, exist_ok=True)
    failed = []
    print("| target | inputs | places reached | outcome |\n| --- | --- | --- | --- |")
    for name in options.targets:
        given = ["--targets", name, "--seconds", str(options.seconds), "--seed", str(options.seed), "--output", str(options.output)]
        command = [sys.executable, "-m", "tools.fuzz", "--alone", *given]
        ended = subprocess.run(command, capture_output=True, text=True, errors="replace", env={**os.environ, "OMP_NUM_THREADS": "1"})
        (options.output / f"{name}.log").write_text(ended.stdout + ended.stderr)
        tried: list[Any] = re.findall(r"stat::number_of_executed_units: (\d+)|^#(\d+)", ended.stderr, re.MULTILINE)
        reached = re.findall(r"cov: (\d+)", ended.stderr)
        count = max((int(a or b) for a, b in tried), default=0)
        print(
            f"| {name} | {count:,} | {reached[-1] if reached else '?'} | {'survived' if not ended.returncode else 'FAILED'} |", flush=True
        )
        failed += [name] if ended.returncode else []
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}; see {options.output}")


if __name__ == "__main__":
    main()
