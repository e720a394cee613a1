"""Qwen-Image-Edit's architecture at tiny size with random weights, as a stock diffusers pipeline and as a backbone."""

from typing import Any

import torch

RESOLUTION = 64
PROMPT_SIDE = 48


def build_pipeline(seed: int = 0, *, plus: bool = False) -> Any:
    """A `QwenImageEditPipeline`, or the Plus one, with every part at tiny size and random weights drawn from `seed`."""
    from diffusers import (
        AutoencoderKLQwenImage,
        FlowMatchEulerDiscreteScheduler,
        QwenImageEditPipeline,
        QwenImageEditPlusPipeline,
        QwenImageTransformer2DModel,
    )

    from tools.embedded.tiny_vlm import build_model, build_processor

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        processor = build_processor(["Describe the key features of the input image"], vocabulary=300)
        text_encoder = build_model(processor, hidden_size=96, layers=1, vision_size=32, vision_layers=1)
        vae = AutoencoderKLQwenImage(base_dim=8, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
        transformer = QwenImageTransformer2DModel(
            patch_size=2,
            in_channels=64,
            out_channels=16,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=3,
            joint_attention_dim=96,
            axes_dims_rope=(4, 6, 6),
        )
        scheduler = FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9, max_image_seq_len=8192, shift_terminal=0.02
        )
    parts = {"scheduler": scheduler, "vae": vae, "text_encoder": text_encoder, "processor": processor, "transformer": transformer}
    kind = QwenImageEditPlusPipeline if plus else QwenImageEditPipeline
    return kind(tokenizer=processor.tokenizer, **parts)


def wrap(pipeline: Any, *, guidance: float = 4.0, negative_prompt: str = " ") -> Any:
    """A pipeline of this make as a backbone."""
    from diffusers import QwenImageEditPlusPipeline

    from policies.retoucher.backbones.qwen_image_edit import QwenEditBackbone

    return QwenEditBackbone(
        pipeline,
        name="tiny_qwen",
        resolution=RESOLUTION,
        guidance=guidance,
        negative_prompt=negative_prompt,
        prompt_side=PROMPT_SIDE if isinstance(pipeline, QwenImageEditPlusPipeline) else None,
        base_model="portraitkit/random-qwen-image-edit",
        licence="apache-2.0",
        batch=8,
    )
