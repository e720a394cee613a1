"""What real sizes cost on a GPU: `python -m benchmarks.gpu_bench`."""
