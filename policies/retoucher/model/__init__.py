"""The contract of a backbone, and what is done to its weights: adapters, loading, sharding, cached encodings."""
