"""Files that are whole or not there, and strict JSONL."""
