"""What is measured, and how: each part runs as `python -m benchmarks.<part>`."""
