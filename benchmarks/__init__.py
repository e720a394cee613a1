"""Benchmarks of retouchers: metrics with intervals and tests, and a blind test with people."""
