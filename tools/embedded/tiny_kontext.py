"""FLUX.1 Kontext's architecture at 3.5 M parameters, 128 px: what the embedded retoucher is before it is trained."""

from typing import TYPE_CHECKING

import torch

from policies.retoucher.backbones.tiny import RESOLUTION

if TYPE_CHECKING:
    from diffusers import FluxKontextPipeline

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
