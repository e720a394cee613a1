"""Entry points of the commands for vision-language models. Imports nothing heavy: `--help` must answer at once."""

import sys

from portraitkit.cli import command


@command
def score_completions(argv: list[str]) -> int:
    """Verifiable rewards of completions, without a model."""
    from policies.vlm.score import score_main

    return score_main(argv)


@command
def align_vlm(argv: list[str]) -> int:
    """Align a vision-language model with a task's verifiable rewards."""
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


@command
def extract_makeup(argv: list[str]) -> int:
    """The makeup of a face as JSON, and on a second face."""
    from policies.vlm.config import ExtractConfig
    from portraitkit.config import load_config

    config = load_config(ExtractConfig, argv, prog="extract-makeup", example="me.jpg --face friend.jpg")
    from policies.vlm.extract import run_extraction

    return run_extraction(config, [sys.argv[0], *argv])


@command
def synthesize_emotion(argv: list[str]) -> int:
    """Reasoned answers about labelled faces, kept if they agree with the truth exactly."""
    from policies.vlm.config import SynthesizeConfig
    from portraitkit.config import load_config

    config = load_config(SynthesizeConfig, argv, prog="synthesize-emotion", example="data/emotion --model Qwen/Qwen2.5-VL-7B-Instruct")
    from policies.vlm.synthesize import run_synthesis

    return run_synthesis(config, [sys.argv[0], *argv])


if __name__ == "__main__":  # `torchrun -m policies.vlm.main`, as `synthesize-emotion --deepspeed` starts it
    align_vlm()
