"""`align-vlm`: SFT and GRPO of a vision-language model on a task."""
