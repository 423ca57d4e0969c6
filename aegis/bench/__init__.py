"""The benchmark harness: what a decision, an answer, a record and a request cost, with ratios."""
