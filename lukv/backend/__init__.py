"""The one eviction backend: a ragged cache and an attention function registered with transformers."""
