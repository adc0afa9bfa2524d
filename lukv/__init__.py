"""LU-KV: KV cache eviction by predicted future utility (arXiv 2602.08585), and the one backend all methods share."""
