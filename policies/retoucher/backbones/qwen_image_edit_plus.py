"""Qwen-Image-Edit-Plus (the 2509 and 2511 releases) as a policy: as Qwen-Image-Edit, but the text encoder sees a smaller photo."""

from diffusers import QwenImageEditPlusPipeline

from policies.retoucher.backbones.qwen_image_edit import QwenEditBackbone, load_qwen

PROMPT_SIDE = 384
"""Side of the photo in the prompt, in pixels: the pipeline's own CONDITION_IMAGE_SIZE for square pictures."""


def load_qwen_image_edit_plus(
    model: str | None,
    resolution: int | None,
    device: str,
    *,
    guidance: float = 4.0,
    negative_prompt: str = " ",
    quantize: str = "none",
    offload_text_encoder: bool = False,
    vae_tiling: bool = False,
) -> QwenEditBackbone:
    """Qwen-Image-Edit-2509 or a later release; arguments and errors as for `load_qwen_image_edit`."""
    return load_qwen(
        QwenImageEditPlusPipeline,
        "qwen_image_edit_plus",
        "Qwen/Qwen-Image-Edit-2509",
        model,
        resolution,
        device,
        prompt_side=PROMPT_SIDE,
        guidance=guidance,
        negative_prompt=negative_prompt,
        quantize=quantize,
        offload_text_encoder=offload_text_encoder,
        vae_tiling=vae_tiling,
    )


BACKBONE = load_qwen_image_edit_plus
