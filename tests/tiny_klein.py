"""FLUX.2 [klein]'s architecture at tiny size with random weights, as a stock diffusers pipeline and as a backbone."""

from typing import Any

import torch

RESOLUTION = 64
TEXT_TOKENS = 24
TEXT_LAYERS = (1, 2, 3)
WORDS = ["<|im_start|>", "user", "assistant", "<|im_end|>", "soften", "the", "spots", "retouch", "plastic"]


def build_pipeline(seed: int = 0, *, distilled: bool = False) -> Any:
    """A `Flux2KleinPipeline` with every part at tiny size and random weights drawn from `seed`."""
    from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline, Flux2Transformer2DModel
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from tools.embedded.tiny_vlm import build_processor

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = build_processor(WORDS, vocabulary=300).tokenizer
        tokenizer.chat_template = (
            "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
            "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
        )
        text_encoder = Qwen3ForCausalLM(
            Qwen3Config(
                vocab_size=len(tokenizer),
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=4,
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=8,
                tie_word_embeddings=True,
                bos_token_id=None,
                eos_token_id=None,
                pad_token_id=None,
            )
        )
        vae = AutoencoderKLFlux2(block_out_channels=(8, 8, 8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=4, sample_size=64)
        vae.bn.running_mean.normal_(std=0.1)
        vae.bn.running_var.uniform_(0.5, 1.5)
        transformer = Flux2Transformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=3 * 16,
            timestep_guidance_channels=32,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=False,
        )
        scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    parts = {"scheduler": scheduler, "vae": vae, "text_encoder": text_encoder, "tokenizer": tokenizer, "transformer": transformer}
    return Flux2KleinPipeline(**parts, is_distilled=distilled)


def wrap(pipeline: Any, **options: Any) -> Any:
    """A pipeline of this make as a backbone."""
    from policies.retoucher.backbones.flux2_klein import KleinBackbone

    return KleinBackbone(
        pipeline,
        name="tiny_klein",
        resolution=RESOLUTION,
        text_tokens=TEXT_TOKENS,
        text_layers=TEXT_LAYERS,
        base_model="portraitkit/random-flux2-klein",
        licence="apache-2.0",
        batch=8,
        **options,
    )
