"""`make embedded`: rebuild the committed embedded retoucher from its recipe. About three hours on two cores.

    python -m tools.embedded.retoucher --portraits FOLDER

Stages: the autoencoder, on people morphed from the two bundled portraits; exact whitening of its latents; the flow, trained on labels of
mixed quality, as real label sets have them: first on morphs, then on the training people of the folder as well. Without a folder the
last round is left out, and the weights know two faces. Each stage is kept in the work folder and skipped when it is already there.
Validation people alone are looked at; the held-out ones are never touched.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from portraitkit.cli import run_command
from portraitkit.config import Options, load_config

if TYPE_CHECKING:
    import torch
    from diffusers import FluxKontextPipeline

    from tools.embedded.case_pool import CasePool


@dataclass(frozen=True)
class CodecRound:
    """One cosine of the autoencoder's training."""

    steps: int
    learning_rate: float
    blemish_weight: float


@dataclass(frozen=True)
class FlowRound:
    """One stretch of the flow's training; `cooldown` is the share of its steps over which the learning rate falls to 0."""

    steps: int
    learning_rate: float
    cooldown: float
    reference_weight: float = 0.0
    """See `retoucher_flow.train_flow`."""
    x0_loss: bool = False
    """See `retoucher_flow.train_flow`."""
    people: bool = False
    """Whether the people of the folder are seen."""


CODEC_ROUNDS = (CodecRound(1500, 2.5e-3, 12.0), CodecRound(1700, 2.0e-3, 25.0))
FLOW_ROUNDS = (
    FlowRound(2250, 1.5e-3, 0.0),
    FlowRound(800, 1.0e-3, 1.0),
    FlowRound(2000, 1.5e-3, 0.0),
    FlowRound(2250, 1.5e-3, 0.0, reference_weight=0.5, people=True),
    FlowRound(2780, 1.5e-3, 0.4, reference_weight=0.1, x0_loss=True, people=True),
)
"""Each round starts from the moving average of the one before."""


@dataclass(frozen=True)
class PretrainConfig(Options):
    """Rebuild the embedded retoucher."""

    output_dir: str = "policies/retoucher/backbones/embedded"
    """Where the diffusers folder goes."""
    work_dir: str = "runs/embedded"
    """Stages and logs."""
    portraits: str = ""
    """Folder of portraits whose training people the flow learns, as `make-preferences build` takes it; none without."""
    seed: int = 0
    """Of weights, cases and batches."""
    codec_cases: int = 1200
    """Photos for the autoencoder."""
    scale: float = 1.0
    """Share of the recipe's training steps; below 1 only to try it."""
    flow_cases: int = 4000
    """Photos of morphs for the flow, each with four labels."""
    people_cases: int = 6500
    """Photos of the folder's people for the flow, each with three labels."""
    flow_batch: int = 32
    """Photos in a flow step."""


def main() -> None:
    """Console entry of `python -m tools.embedded.retoucher`."""
    run_command(lambda argv: build(load_config(PretrainConfig, argv, prog="python -m tools.embedded.retoucher")))


def build(config: PretrainConfig) -> int:
    """Run every stage that is not yet in the work folder and write the embedded pipeline."""
    import torch

    from tools.embedded import tiny_kontext
    from tools.embedded.people import people_seen

    started = time.monotonic()
    folder, work = Path(config.portraits) if config.portraits else None, Path(config.work_dir)
    work.mkdir(parents=True, exist_ok=True)
    log = (work / "log.jsonl").open("a", encoding="utf-8")

    def report(stage: str, **figures: object) -> None:
        line = json.dumps({"stage": stage, "minutes": round((time.monotonic() - started) / 60, 2), **figures})
        print(line, file=sys.stderr, flush=True)
        log.write(line + "\n")
        log.flush()

    pipeline = tiny_kontext.build_pipeline(config.seed)
    stages = (
        ("codec", pipeline.vae, lambda: teach_codec(pipeline, config, report)),
        ("flow", pipeline.transformer, lambda: teach_flow(pipeline, config, folder, work, report)),
    )
    for name, network, teach in stages:
        kept = work / f"{name}.pt"
        if kept.is_file():
            network.load_state_dict(torch.load(kept, weights_only=True))
        else:
            teach()
            torch.save(network.state_dict(), kept)
        network.eval()

    pipeline.to(torch.float16)
    pipeline.save_pretrained(config.output_dir)
    recipe = {
        "recipe": {key: value for key, value in asdict(config).items() if key != "portraits"},
        "codec_rounds": [asdict(r) for r in CODEC_ROUNDS],
        "flow_rounds": [asdict(r) for r in FLOW_ROUNDS],
        "people": people_seen(folder, work),
        "torch": torch.__version__,
    }
    (Path(config.output_dir) / "recipe.json").write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")
    report("done", output=config.output_dir)
    log.close()
    return 0


def teach_codec(pipeline: "FluxKontextPipeline", config: PretrainConfig, report: Callable[..., None]) -> None:
    """Train the autoencoder and whiten its latents."""
    import torch

    from preference_data.people.synthetic import make_case
    from tools.embedded import tiny_kontext
    from tools.embedded.case_pool import CasePool
    from tools.embedded.labels import LABELS
    from tools.embedded.retoucher_codec import RetouchHead, codec_gate, train_codec, whiten_latents

    torch.manual_seed(config.seed)
    pool = CasePool(partial(make_case, "train"), range(config.seed, config.seed + config.codec_cases))
    head = RetouchHead(tiny_kontext.LATENT_CHANNELS, len(LABELS))
    for part in CODEC_ROUNDS:
        train_codec(
            pipeline.vae,
            pool,
            steps=max(1, int(part.steps * config.scale)),
            batch=16,
            crop=64,
            learning_rate=part.learning_rate,
            blemish_weight=part.blemish_weight,
            seed=config.seed,
            head=head,
            report=lambda step, figures: report("codec", step=step, **figures),
        )
    report("codec gate", **codec_gate(pipeline.vae, head, validation_cases(None, Path())))
    whiten_latents(pipeline.vae, torch.cat([pool.planes[:128, :3], pool.planes[:128, 3:6]]).float() / 255)


def teach_flow(
    pipeline: "FluxKontextPipeline", config: PretrainConfig, folder: Path | None, work: Path, report: Callable[..., None]
) -> None:
    """Train the flow, round by round; each starts from the moving average of the one before."""
    import torch

    from policies.retoucher.backbones import tiny
    from tools.embedded.retoucher_flow import encode_pool, flow_gate, latents_of, pixel_metric, train_flow

    with torch.no_grad():
        words, pooled, _ = pipeline.encode_prompt(tiny.PROMPT, None, max_sequence_length=tiny.TEXT_TOKENS)
    for people, parts in groupby(FLOW_ROUNDS, key=lambda part: part.people):
        if people and folder is None:
            continue
        cases = training_cases(config, folder if people else None, work)
        validation = validation_cases(folder if people else None, work)
        with torch.no_grad():
            metric = pixel_metric(pipeline.vae, latents_of(pipeline.vae, cases.planes[:8, :3].float() / 255))
        latents = encode_pool(pipeline.vae, cases, labels=3 if people else 4, seed=config.seed)
        report("latents", cases=len(latents.source), labels=latents.labels.shape[1])

        def gate(step: int, figures: dict[str, float], model: "torch.nn.Module", validation: "CasePool" = validation) -> None:
            report("flow", step=step, **figures, **flow_gate(pipeline, model, validation))
            torch.save(model.state_dict(), work / "flow-latest.pt")

        for part in parts:
            average = train_flow(
                pipeline.transformer,
                latents,
                (words, pooled),
                metric,
                steps=max(1, int(part.steps * config.scale)),
                batch=config.flow_batch,
                learning_rate=part.learning_rate,
                cooldown=part.cooldown,
                seed=config.seed,
                reference_weight=part.reference_weight,
                x0_loss=part.x0_loss,
                report=gate,
            )
            pipeline.transformer.load_state_dict(average.state_dict())


def training_cases(config: PretrainConfig, folder: Path | None, work: Path) -> "CasePool":
    """Photos for the flow: of morphs; with a folder of its people, and of some morphs."""
    from preference_data.people.synthetic import make_case
    from tools.embedded.case_pool import CasePool
    from tools.embedded.people import draw_case, read_faces

    first = config.seed + 100_000
    morphs = config.flow_cases if folder is None else config.people_cases * 3 // 13
    pool = CasePool(partial(make_case, "train"), range(first, first + morphs))
    if folder is not None:
        pool += CasePool(partial(draw_case, read_faces(folder, "train", work)), range(first, first + config.people_cases))
    return pool


def validation_cases(folder: Path | None, work: Path) -> "CasePool":
    """64 photos of people that are not taught: morphs, or those of a folder's validation split."""
    from preference_data.people.synthetic import SEEDS, make_case
    from tools.embedded.case_pool import CasePool
    from tools.embedded.people import draw_case, read_faces

    if folder is None:
        return CasePool(partial(make_case, "validation"), range(SEEDS["validation"], SEEDS["validation"] + 64))
    return CasePool(partial(draw_case, read_faces(folder, "validation", work)), range(64))


if __name__ == "__main__":
    main()
