"""A judge that fits into a test: a tiny Qwen2.5-VL that was taught the short form of the answer in seconds, and nothing about retouches."""

from pathlib import Path

import torch

from portraitkit.pictures.images import to_pil
from portraitkit.vlm.model import vision_tower
from portraitkit.vlm.rows import messages
from preference_data.contract import BRIEF_PROMPT, BRIEF_WORDS, Answer, write_brief
from preference_data.schema import DIMENSIONS
from preference_data.verdict import PLACES
from reward_models.judge.settings import JudgeSettings, write_settings
from tools.embedded.tiny_vlm import build_model, build_processor

TAGS = ("<think>", "</think>", "<answer>", "</answer>", *BRIEF_WORDS.values())


def answer(generator: torch.Generator) -> str:
    """A random answer in the short form."""
    scores = torch.randint(1, 6, (len(DIMENSIONS), 2), generator=generator).tolist()
    better = PLACES[int(torch.randint(1, 3, (1,), generator=generator))]
    return write_brief(Answer({name: (both[0], both[1]) for name, both in zip(DIMENSIONS, scores, strict=True)}, better, ""))


def write_tiny_judge(folder: Path, steps: int = 240) -> Path:
    """Teach the form on eight fixed answers and write model, processor and judge.json into a folder."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    processor = build_processor([f"assistant user {BRIEF_PROMPT}"] * 3, TAGS, vocabulary=400)
    processor.image_processor.size = {"shortest_edge": 16 * 16, "longest_edge": 64 * 32}  # few tokens a picture
    model = build_model(processor, hidden_size=96, layers=2, vision_size=32, vision_layers=1).train()
    vision_tower(model).requires_grad_(False)
    pictures = torch.linspace(0.1, 0.9, 16).view(8, 2, 1, 1, 1).expand(8, 2, 3, 192, 96)
    targets = [answer(generator) for _ in pictures]
    chats = [processor.apply_chat_template(messages(BRIEF_PROMPT, target, pictures=2), tokenize=False) for target in targets]
    inputs = processor(images=[[to_pil(one) for one in both] for both in pictures], text=chats, padding=True, return_tensors="pt")
    start = max(len(processor.tokenizer(f"{target}<|im_end|>\n")["input_ids"]) for target in targets)
    labels = inputs["input_ids"].clone()
    labels[:, :-start] = -100
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3, betas=(0.9, 0.95))
    for _ in range(steps):
        model(**inputs, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    write_settings(folder, JudgeSettings("beside-difference", "brief", 1.0, "tiny"))
    return folder
