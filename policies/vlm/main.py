"""Entry points of the commands for vision-language models. Imports nothing heavy: `--help` must answer at once."""

import sys

from portraitkit.cli import run_command


def score_completions() -> None:
    """Console command `score-completions ROWS.jsonl`: verifiable rewards of completions, without a model."""
    run_command(_score)


def _score(argv: list[str]) -> int:
    from policies.vlm.score import score_main

    return score_main(argv)


def align_vlm() -> None:
    """Console command `align-vlm`: align a vision-language model with a task's verifiable rewards."""
    run_command(_align)


def _align(argv: list[str]) -> int:
    from policies.vlm.align.align_config import AlignVlmConfig
    from portraitkit.config import load_config

    config = load_config(AlignVlmConfig, argv, prog="align-vlm", example="--task area")
    if config.dry_run:
        from policies.vlm.align.align_plan import dry_run

        return dry_run(config)
    if config.export != "none":
        from policies.vlm.export import run_export

        return run_export(config)
    from policies.vlm.align.align import run_alignment

    return run_alignment(config, [sys.argv[0], *argv])


def extract_makeup() -> None:
    """Console command `extract-makeup PHOTO`: the makeup of a face as JSON, and on a second face."""
    run_command(_extract)


def _extract(argv: list[str]) -> int:
    from policies.vlm.config import ExtractConfig
    from portraitkit.config import load_config

    config = load_config(ExtractConfig, argv, prog="extract-makeup", example="me.jpg --face friend.jpg")
    from policies.vlm.extract import run_extraction

    return run_extraction(config, [sys.argv[0], *argv])


def synthesize_emotion() -> None:
    """Console command `synthesize-emotion ROWS`: reasoned answers about labelled faces, kept if they agree with the truth exactly."""
    run_command(_synthesize)


def _synthesize(argv: list[str]) -> int:
    from policies.vlm.config import SynthesizeConfig
    from portraitkit.config import load_config

    config = load_config(SynthesizeConfig, argv, prog="synthesize-emotion", example="data/emotion --model Qwen/Qwen2.5-VL-7B-Instruct")
    from policies.vlm.synthesize import run_synthesis

    return run_synthesis(config, [sys.argv[0], *argv])


if __name__ == "__main__":  # `torchrun -m policies.vlm.main`, as `synthesize-emotion --deepspeed` starts it
    align_vlm()
