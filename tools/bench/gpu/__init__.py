"""What real sizes cost on a GPU: `python -m tools.bench.gpu.main`."""
