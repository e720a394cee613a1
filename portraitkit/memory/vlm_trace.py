"""What a vision-language model's training step allocates: the model's own layers on the meta device, TRL's fused head beside them."""

from dataclasses import dataclass, replace
from functools import lru_cache
from math import ceil, isqrt
from typing import Any

import torch
from torch import Tensor

from portraitkit.memory.plan import Trained
from portraitkit.memory.trace import SHALLOW, added_bytes, by_depth, size_of, stacks_of, tensors_of, tracing
from portraitkit.vlm.model import DTYPES, meta_model, train_last_norm, vision_tower

HEAD_TOKENS, HEAD_WORDS = 4096, 32768  # TRL's fused head projects so many tokens onto so many words of the vocabulary at once


@dataclass(frozen=True)
class Load:
    """What one pass through the model is given."""

    rows: int  # Sequences at once
    pictures: int  # In a sequence
    picture_tokens: int  # Of one picture
    words: int  # Of the prompt, its template included
    answer: int  # Tokens of the answer

    @property
    def prompt(self) -> int:
        """Tokens before the answer."""
        return self.pictures * self.picture_tokens + self.words

    @property
    def length(self) -> int:
        """Tokens of a sequence."""
        return self.prompt + self.answer


@dataclass(frozen=True)
class ModelSpec:
    """How the model is trained; with `Load`, all that a trace depends on."""

    source: str
    dtype: str
    lora: Any = None  # (rank, alpha, dropout, targets), or None
    freeze_vision: bool = False
    checkpointing: bool = False
    last_norm: bool = False  # Without a LoRA, the gains of the language part's last norm alone are trained
    gpu: bool = False  # GPUs score the answers' tokens only, in a kernel; CPUs score all, and hold tiles in float32


@dataclass(frozen=True)
class ModelSizes:
    """Sizes that no computation is needed for."""

    parameters: int
    weights: int
    trained: Trained
    adapter: int  # Bytes of the LoRA, which stand beside the weights; 0 without one
    largest_block: int
    layers: int  # That keep keys and values
    cache_per_token: int  # Bytes of keys and values of a token in all layers that have some
    cache_per_row: int  # Bytes of the states of linear attention of a sequence, whatever its length
    vocabulary: int
    token_side: int  # Pixels along a side of what one token of a picture covers
    values_per_token: int  # Values of a picture's patches behind one of its tokens


@lru_cache(maxsize=8)
def model_sizes(spec: ModelSpec) -> ModelSizes | None:
    """Sizes of a model; None where its architecture is not known."""
    model = meta_model(spec.source)
    if model is None:
        return None
    model = model.to(DTYPES[spec.dtype])
    parameters, weights = sum(p.numel() for p in model.parameters()), size_of(tensors_of(model))
    blocks = [size_of(tensors_of(module)) for module in model.modules() if type(module).__name__.endswith(("DecoderLayer", "Block"))]
    text, width = model.config.get_text_config(), next(model.parameters()).element_size()
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    linear = [module for module in model.modules() if type(module).__name__.endswith("GatedDeltaNet")]
    states = sum(4 * net.num_v_heads * net.head_k_dim * net.head_v_dim + width * net.conv_dim * net.conv_kernel_size for net in linear)
    layers = text.num_hidden_layers - len(linear)
    vision = model.config.vision_config
    side = vision.patch_size * getattr(vision, "spatial_merge_size", 1)
    whole, trained = _trainable(model, spec)
    adapter = size_of(p for name, p in whole.named_parameters() if "lora_" in name)
    return ModelSizes(
        parameters,
        weights,
        Trained(tuple((p.numel(), p.element_size()) for p in trained)),
        adapter,
        max(blocks, default=0),
        layers,
        2 * layers * text.num_key_value_heads * head * width,
        states,
        text.vocab_size,
        side,
        3 * getattr(vision, "temporal_patch_size", 1) * side**2,
    )


@lru_cache(maxsize=32)
def update_bytes(spec: ModelSpec, load: Load, *, accumulated: bool) -> int:
    """Bytes that a forward and backward add to the model, gradients included; if `accumulated`, those of earlier parts of the batch are
    there."""
    model, base, trained, size = _ready(spec)
    stacks = stacks_of(base)
    exact = all(len(stack) <= SHALLOW for stack in stacks)
    dropped = [] if exact else [p for stack in stacks for p in stack.parameters() if p.requires_grad]
    # the gradients of blocks are added below: their sum grows while what the blocks kept shrinks
    each = {id(p): p for p in dropped}.values()
    hooks = [parameter.register_post_accumulate_grad_hook(lambda parameter: setattr(parameter, "grad", None)) for parameter in each]
    measured: list[int] = []

    def once() -> int:
        gradients = [torch.empty_like(parameter) for parameter in trained] if exact and accumulated else [None for _ in trained]
        for parameter, gradient in zip(trained, gradients, strict=True):
            parameter.grad = gradient
        with tracing(tensors_of(model)) as live:
            before = live.now
            for gradient in gradients:
                if gradient is not None:
                    live.see(gradient)
            hidden = hidden_states(base, load)[:, :-1]
            scored = hidden[:, -load.answer :] if spec.gpu else hidden
            score = _FusedHead.apply(scored.reshape(-1, hidden.shape[-1]), base.lm_head.weight, spec.gpu)
            score.sum().backward()
        measured.append(live.peak - before)
        return measured[-1]

    kept = by_depth(stacks, once)
    for hook in hooks:
        hook.remove()
    for parameter in trained:
        parameter.grad = None
    return kept if exact else size + kept if accumulated else max(kept, size + measured[0])  # at the head, or at the first blocks


@lru_cache(maxsize=4)
def _ready(spec: ModelSpec) -> tuple[Any, Any, list[Tensor], int]:
    """The model as it is trained, the same without peft's wrapper, what is trained, and the bytes of that and of its gradients."""
    model, trained = _trainable(meta_model(spec.source).to(DTYPES[spec.dtype]), spec)
    size = size_of(trained)
    base = model.get_base_model() if spec.lora is not None else model
    if spec.gpu and spec.dtype == "bfloat16" and spec.lora is not None:
        for parameter in trained:  # under autocast, their inputs and products are in bfloat16
            parameter.data = parameter.data.bfloat16()
    base.train()
    for block in base.model.visual.blocks:
        block.attn.register_forward_pre_hook(_all_at_once, with_kwargs=True)
    if spec.checkpointing:
        enable = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable  # the old name before 5.20
        enable({"use_reentrant": False})
    return model, base, trained, size


def _all_at_once(attention: Any, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
    """A vision tower's attention in one call, not window by window: fused, both hold as much, and windows are most of a trace's time."""
    return args, {**kwargs, "cu_seqlens": torch.tensor([0, len(args[0])])}


@lru_cache(maxsize=32)
def read_bytes(spec: ModelSpec, load: Load, *, scored: bool) -> int:
    """Bytes that a forward without gradients adds: for the log-probabilities of answers if `scored`, else to begin an answer, with keys and
    values kept."""
    model, *_ = _ready(ModelSpec(spec.source, spec.dtype))

    def read() -> Tensor:
        hidden = hidden_states(model, load, cache=not scored)
        if scored:
            _FusedHead.apply(hidden[:, -load.answer :].reshape(-1, hidden.shape[-1]), model.lm_head.weight, spec.gpu)
        return hidden

    with torch.no_grad():
        return added_bytes(list(tensors_of(model)), read, model)


def generation_bytes(spec: ModelSpec, load: Load) -> int:
    """Bytes that answers of a batch add: the prompt is read at once, then keys and values grow, a layer's old and new ones side by side."""
    sizes = model_sizes(spec)
    assert sizes is not None
    cache, rest = sizes.cache_per_token * load.rows * load.length, load.rows * (sizes.cache_per_row + 16 * sizes.vocabulary)
    return max(read_bytes(replace(spec, lora=None), load, scored=False), cache + cache // sizes.layers + rest)


def _trainable(model: Any, spec: ModelSpec) -> tuple[Any, list[Tensor]]:
    if spec.freeze_vision:
        vision_tower(model).requires_grad_(False)
    if spec.lora is not None:
        from peft import LoraConfig, get_peft_model

        rank, alpha, dropout, targets = spec.lora
        exclude = r".*(visual|vision_tower|vision_model).*"
        settings = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(targets), exclude_modules=exclude)
        with torch.device("meta"):  # peft would draw the LoRA's numbers on the CPU
            model = get_peft_model(model, settings)
    elif spec.last_norm:
        train_last_norm(model)
    return model, [p for p in model.parameters() if p.requires_grad]


def hidden_states(model: Any, load: Load, *, cache: bool = False) -> Tensor:
    """The last layer's states of a batch with padding, as the trainers make it; the pictures are read, too. On the meta device, without
    peft's wrapper. With `cache` the prompt alone is read and its keys and values are kept."""
    core, config = model.model, model.config.vision_config
    high = isqrt(load.picture_tokens)
    wide = ceil(load.picture_tokens / high)
    merge = config.spatial_merge_size
    patches = high * wide * merge**2
    values = 3 * config.temporal_patch_size * config.patch_size**2
    count, dtype = load.rows * load.pictures, next(model.parameters()).dtype
    length = load.prompt if cache else load.length
    with torch.device("meta"):
        pixels = torch.empty(count * patches, values, dtype=dtype)
        words = torch.empty(load.rows, length, dtype=torch.long)
        positions = torch.empty(3, load.rows, length, dtype=torch.long)
        mask = torch.empty(load.rows, 1, length, length, dtype=torch.bool)
        seen_words = torch.empty(load.rows, length, dtype=torch.long)
        places = torch.empty(load.rows, length, 1, dtype=torch.bool)
        spots = torch.empty(count * patches, 2, dtype=torch.long)
        near = {"interp_indices": torch.empty(count * patches, 4, dtype=torch.long), "interp_weights": torch.empty(count * patches, 4)}
    grid = torch.tensor([[1, high * merge, wide * merge]] * count)
    learned = near if hasattr(core.visual, "pos_embed") else {}  # places of Qwen3-VL's patches, between those that were learned
    seen = core.visual(pixels, grid_thw=grid, position_ids=spots, **learned).pooler_output
    embedded = core.language_model.embed_tokens(words)
    embedded = embedded.masked_scatter(places.expand_as(embedded), seen.to(embedded.dtype))
    kinds = hasattr(model.config.get_text_config(), "layer_types")  # Qwen3-VL's has none
    seen_by = {"full_attention": mask, "linear_attention": seen_words} if kinds else mask
    out = core.language_model(inputs_embeds=embedded, position_ids=positions, attention_mask=seen_by, use_cache=cache, return_dict=True)
    return out.last_hidden_state


class _FusedHead(torch.autograd.Function):
    """The allocations of TRL's fused head (log-probabilities and entropies without the matrix of all logits), without its arithmetic."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, gpu: bool) -> Tensor:
        """One score a token."""
        ctx.save_for_backward(hidden, weight)
        ctx.gpu = gpu
        tiles = _tiles(hidden, weight, gpu)
        statistics = hidden.new_empty(9, len(hidden), dtype=torch.float32)
        return tiles[0].new_empty(len(hidden), dtype=statistics.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """Gradients are added up in float32."""
        hidden, weight = ctx.saved_tensors
        of_hidden = torch.empty_like(hidden, dtype=torch.float32)
        of_weight = torch.empty_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        tiles = _tiles(hidden, weight, ctx.gpu)
        del tiles
        return of_hidden.to(hidden.dtype), None if of_weight is None else of_weight.to(weight.dtype), None


def _tiles(hidden: Tensor, weight: Tensor, gpu: bool) -> list[Tensor]:
    """The buffer of a tile, and where no kernel folds it four float32 tiles: scaled, shifted, their exponential, a product."""
    size = (min(len(hidden), HEAD_TOKENS), min(weight.shape[0], HEAD_WORDS))
    buffer = hidden.new_empty(size[0], HEAD_WORDS)
    return [buffer, *(hidden.new_empty(size, dtype=torch.float32) for _ in range(0 if gpu else 4))]
