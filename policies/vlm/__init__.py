"""Vision-language policies: tasks with verifiable rewards, and the command that scores completions."""
