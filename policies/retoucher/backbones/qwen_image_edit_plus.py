"""Qwen-Image-Edit-Plus (the 2509 and 2511 releases) as a policy: as Qwen-Image-Edit, but the text encoder sees a smaller photo."""

from functools import partial

from diffusers import QwenImageEditPlusPipeline

from policies.retoucher.backbones.qwen_image_edit import load_qwen

PROMPT_SIDE = 384  # Side of the photo in the prompt, in pixels: the pipeline's own CONDITION_IMAGE_SIZE for square pictures

BACKBONE = partial(
    load_qwen, kind=QwenImageEditPlusPipeline, name="qwen_image_edit_plus", hub_id="Qwen/Qwen-Image-Edit-2509", prompt_side=PROMPT_SIDE
)
