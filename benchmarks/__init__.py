"""The full benchmark (`python -m benchmarks`), and what is run under pytest-benchmark."""
