"""The embedded retoucher: FLUX.1 Kontext's architecture at 3.5 M parameters, 128 px, small enough to commit and to train on a CPU.

`build_pipeline` makes a stock diffusers `FluxKontextPipeline` from configuration alone; `python -m tools.embedded.retoucher`
trains it and writes `embedded/`; `BACKBONE` loads that folder. Same classes, latent packing, position ids and
velocity convention as the real model, so everything written against it runs on FLUX.1 Kontext.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from portraitkit.errors import ConfigError, WeightsError

if TYPE_CHECKING:
    from diffusers import FluxKontextPipeline

    from policies.retoucher.backbones.flux_kontext import KontextBackbone

EMBEDDED = Path(__file__).parent / "embedded"
RESOLUTION = 128
PROMPT = "Beautify this person's face while maintaining a natural and realistic appearance"
TEXT_TOKENS = 16
LATENT_CHANNELS = 16
WORDS = (
    "a and appearance beautify blemishes brighten clean eyes face faces hair identity keep light lips maintaining make natural "
    "person photo pores portrait realistic remove retouch skin smooth soften spots teeth texture the this while with"
)


def _byte_vocabulary() -> list[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    return letters + [letter + "</w>" for letter in letters]


def build_pipeline(seed: int = 0) -> "FluxKontextPipeline":
    """A `FluxKontextPipeline` with every part at tiny size and random weights drawn from `seed`."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxKontextPipeline, FluxTransformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5TokenizerFast

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(16, 32, 48, 64),
            layers_per_block=1,
            latent_channels=LATENT_CHANNELS,
            norm_num_groups=4,
            mid_block_add_attention=False,
            sample_size=RESOLUTION,
            scaling_factor=1.0,
            shift_factor=0.0,
        )
        transformer = FluxTransformer2DModel(
            patch_size=1,
            in_channels=4 * LATENT_CHANNELS,
            num_layers=1,
            num_single_layers=2,
            attention_head_dim=32,
            num_attention_heads=6,
            joint_attention_dim=16,
            pooled_projection_dim=16,
            guidance_embeds=False,
            axes_dims_rope=(4, 14, 14),
        )
        vocabulary = _byte_vocabulary()
        specials = ["<|startoftext|>", "<|endoftext|>"]
        clip_vocabulary = {token: index for index, token in enumerate(vocabulary + specials)}
        start, end = clip_vocabulary["<|startoftext|>"], clip_vocabulary["<|endoftext|>"]
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(clip_vocabulary),
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                bos_token_id=start,
                eos_token_id=end,
                pad_token_id=end,
            )
        )
        words = [*WORDS.split(), *WORDS.title().split(), "person's"]
        pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
        pieces += [("▁" + word, -1.0) for word in words]
        pieces += [(chr(code), -3.0) for code in range(33, 127)]
        text_encoder_2 = T5EncoderModel(
            T5Config(vocab_size=len(pieces), d_model=16, d_ff=32, d_kv=8, num_layers=1, num_heads=2, decoder_start_token_id=0)
        )
        return FluxKontextPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=CLIPTokenizer(vocab=clip_vocabulary, merges=[], model_max_length=77),
            text_encoder_2=text_encoder_2,
            tokenizer_2=T5TokenizerFast(vocab=pieces, extra_ids=0),
            transformer=transformer,
        )


def load_tiny(model: str | None, resolution: int | None, device: str) -> "KontextBackbone":
    """The committed embedded retoucher, or one of the same make in a folder of yours.

    Raises:
        ConfigError: a resolution other than the 128 px it was trained at.
        WeightsError: the folder holds no pipeline.
    """
    from diffusers import FluxKontextPipeline

    if resolution not in (None, RESOLUTION):
        raise ConfigError(f"--resolution {resolution}: the embedded retoucher works at {RESOLUTION} px; leave the option out")
    folder = Path(model) if model is not None else EMBEDDED
    if not (folder / "model_index.json").is_file():
        raise WeightsError(f"{folder}: holds no diffusers pipeline (model_index.json); `make embedded` rebuilds the embedded one")
    return wrap(FluxKontextPipeline.from_pretrained(folder, dtype=torch.float32, local_files_only=True).to(device))


def wrap(pipeline: "FluxKontextPipeline") -> "KontextBackbone":
    """A pipeline of this make as a backbone."""
    from policies.retoucher.backbones.flux_kontext import LORA_TARGETS, KontextBackbone

    return KontextBackbone(
        pipeline,
        name="tiny",
        resolution=RESOLUTION,
        text_tokens=TEXT_TOKENS,
        guidance=1.0,
        add_residual=True,
        base_model="portraitkit/embedded-retoucher",
        licence="apache-2.0",
        batch=32,
        # One double block in place of nineteen: the published modules alone leave the policy little to move.
        lora_targets=[*LORA_TARGETS, "proj_mlp", "proj_out"],
    )


BACKBONE = load_tiny
