"""`make embedded`: rebuild the committed embedded retoucher from its recipe. About two hours on two cores.

Stages: a pool of synthetic cases; the autoencoder (`pretrain_codec`); exact whitening of its latents; the flow
(`pretrain_flow`), trained on labels of mixed quality, as real label sets have them. Each stage is kept in the work folder and
skipped when it is already there. Validation photos alone are looked at; the held-out split is never touched.
"""

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from portraitkit.cli import run_command
from portraitkit.config import Options, load_config


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


CODEC_ROUNDS = (CodecRound(1500, 2.5e-3, 12.0), CodecRound(1700, 2.0e-3, 25.0))
FLOW_ROUNDS = (FlowRound(2250, 1.5e-3, 0.0), FlowRound(800, 1.0e-3, 1.0), FlowRound(2000, 1.5e-3, 0.0))
"""Each round starts from the moving average of the one before."""


@dataclass(frozen=True)
class PretrainConfig(Options):
    """Rebuild the embedded retoucher."""

    output_dir: str = "policies/retoucher/backbones/embedded"
    """Where the diffusers folder goes."""
    work_dir: str = "runs/embedded"
    """Stages, logs and pictures."""
    seed: int = 0
    """Of weights, cases and batches."""
    codec_cases: int = 1200
    """Photos for the autoencoder."""
    scale: float = 1.0
    """Share of the recipe's training steps; below 1 only to try it."""
    flow_cases: int = 4000
    """Photos for the flow, each with four labels."""
    flow_batch: int = 32
    """Photos in a flow step."""


def main() -> None:
    """Console entry of `python -m tools.embedded.retoucher`."""
    run_command(lambda argv: build(load_config(PretrainConfig, argv, prog="python -m tools.embedded.retoucher")))


def build(config: PretrainConfig) -> int:
    """Run every stage that is not yet in the work folder and write the embedded pipeline."""
    import torch

    from policies.retoucher.backbones import tiny
    from preference_data.people.blemishes import LABELS
    from tools.embedded.case_pool import CasePool
    from tools.embedded.retoucher_codec import RetouchHead, codec_gate, train_codec, whiten_latents
    from tools.embedded.retoucher_flow import encode_pool, flow_gate, latents_of, pixel_metric, train_flow

    started = time.monotonic()
    work = Path(config.work_dir)
    work.mkdir(parents=True, exist_ok=True)
    log = (work / "log.jsonl").open("a", encoding="utf-8")

    def report(stage: str, **figures: object) -> None:
        line = json.dumps({"stage": stage, "minutes": round((time.monotonic() - started) / 60, 2), **figures})
        print(line, file=sys.stderr, flush=True)
        log.write(line + "\n")
        log.flush()

    pipeline = tiny.build_pipeline(config.seed)
    vae = pipeline.vae
    validation = CasePool("validation", 64, seed=10_000_000)
    pool = CasePool("train", config.codec_cases, seed=config.seed)
    report("cases", count=config.codec_cases)

    kept = work / "codec.pt"
    if kept.is_file():
        vae.load_state_dict(torch.load(kept, weights_only=True))
    else:
        torch.manual_seed(config.seed)
        head = RetouchHead(tiny.LATENT_CHANNELS, len(LABELS))
        for part in CODEC_ROUNDS:
            train_codec(
                vae,
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
        report("codec gate", **codec_gate(vae, head, validation))
        whiten_latents(vae, torch.cat([pool.planes[:128, :3], pool.planes[:128, 3:6]]).float() / 255)
        torch.save(vae.state_dict(), kept)
    vae.eval()

    kept = work / "flow.pt"
    if kept.is_file():
        pipeline.transformer.load_state_dict(torch.load(kept, weights_only=True))
    else:
        many = CasePool("train", config.flow_cases, seed=config.seed + 100_000)
        latents = encode_pool(vae, many, labels=4, seed=config.seed)
        with torch.no_grad():
            z = latents_of(vae, many.planes[:8, :3].float() / 255)
            words, pooled, _ = pipeline.encode_prompt(tiny.PROMPT, None, max_sequence_length=tiny.TEXT_TOKENS)
        report("latents", cases=len(latents.source), labels=latents.labels.shape[1])

        def gate(step: int, figures: dict[str, float], model: torch.nn.Module) -> None:
            report("flow", step=step, **figures, **flow_gate(pipeline, model, validation))
            torch.save(model.state_dict(), work / "flow-latest.pt")

        metric = pixel_metric(vae, z)
        for part in FLOW_ROUNDS:
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
                report=gate,
            )
            pipeline.transformer.load_state_dict(average.state_dict())
        torch.save(pipeline.transformer.state_dict(), kept)

    pipeline.to(torch.float16)
    pipeline.save_pretrained(config.output_dir)
    recipe = {
        "recipe": asdict(config),
        "codec_rounds": [asdict(r) for r in CODEC_ROUNDS],
        "flow_rounds": [asdict(r) for r in FLOW_ROUNDS],
        "torch": torch.__version__,
    }
    (Path(config.output_dir) / "recipe.json").write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")
    report("done", output=config.output_dir)
    log.close()
    return 0


if __name__ == "__main__":
    main()
