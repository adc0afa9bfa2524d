"""What is compared: read by kvpress's process and by ours, so it imports neither."""

MODELS = {  # random weights, grouped heads, no groups but biases, grouped heads with query and key norms
    "llama-8-2": {"model_type": "llama", "num_key_value_heads": 2},
    "qwen2-8-8": {"model_type": "qwen2", "num_key_value_heads": 8},
    "qwen3-8-2": {"model_type": "qwen3", "num_key_value_heads": 2},
}
GEOMETRY = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "head_dim": 16,
    "max_position_embeddings": 4096,
    "initializer_range": 0.15,
}
LENGTHS = (70, 257, 1024)
RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # kvpress's compression ratio: the share removed
METHODS = (
    "snapkv_kvpress",
    "snapkv_16",
    "keydiff",
    "expected_attention",
    "expected_attention_eps0",
    "streaming",
    "pyramidkv",
    "adakv_snapkv",
    "adakv_keydiff",
    "adakv_expected_attention",
    "adakv_expected_attention_eps0",
    "lukv_keydiff",
    "lukv_expected_attention",
    "keynorm",
    "qfilters",
    "finch",
    "cur_kvpress",
    "leverage",
    "non_causal",
    "compactor",
    "criticaladakv_snapkv_16",
    "criticalkv_keydiff",
    "criticalkv_snapkv_16",
    "chunkkv_snapkv_16",
    "chunkkv_keydiff",
    "lagkv_cross",
    "lagkv",
    "observed_attention",
    "tova_kvpress",
)
TRAINED = "tiny"  # models/tiny: heads that specialise, and budget tables measured for it (the others have made-up ones)
TRAINED_METHODS = ("snapkv_32", "qfilters", "adakv_keydiff", "lukv_keydiff", "lukv_expected_attention", "lukv_snapkv")
CASES = {**dict.fromkeys(MODELS, METHODS), TRAINED: TRAINED_METHODS}
SKETCH = 4  # columns of the random projections: with few, kvpress's float32 solution is exact to 1e-5
QUESTION = 4  # tokens after the context
SEEN = 16  # tokens of the question at the end of the context, for FINCH
DUO = {"sink": 8, "recent": 16}  # what streaming heads keep
KVZIP = {  # KVzipPress's parameters: one chunk holds the whole prompt, or there are several
    "kvzip": {},
    "kvzip_chunks": {"chunk_size": 100},
    "kvzip_plus": {"chunk_size": 100, "kvzip_plus_normalization": True},
    "kvzip_layerwise": {"chunk_size": 100, "layerwise": True},
}
KVZIP_RATIOS = (0.1, 0.5, 0.8)
KVZIP_LENGTHS = (30, 70, 257)  # at each ratio more is kept than the sinks
HEADS = {"": ("", "\n"), "short": ("<u>", "</u>"), "long": ("<system><u>", "</u>")}  # chat template, "" is none


def encode_text(text: str) -> list[int]:
    """A tokenizer for models that have none."""
    return [ord(letter) for letter in text]


def table_file(model: str, method: str) -> str:
    """The budget table that LUKVPress reads: of TRAINED one for each scorer."""
    return f"{model}-{method.removeprefix('lukv_')}.npy" if model == TRAINED else f"{model}.npy"


def filters_file(model: str) -> str:
    """The Q-Filters of a model, [layers, K, d], as kvpress's process reads them."""
    return f"{model}-qfilters.npy"
