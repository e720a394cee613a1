"""Vision-language models with verifiable rewards: the contract of a task."""
