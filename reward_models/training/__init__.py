"""`train-reward-model`: imitation, rejection sampling and GRPO of a judge."""
