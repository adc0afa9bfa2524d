"""Decode kernels on a CUDA device: bf16 and fp16 against the loop in float32, and the whole model against the CPU."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from lukv.backend.attention import use_ragged_attention
from lukv.backend.generate import answer, append, compress
from lukv.backend.kernels import list_kernels, pick
from tests.reference.dense_reference import FAMILIES, eviction, rows, tiny_model

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
CUDA = torch.device("cuda")
SHAPES = [
    (8, 4, 128, 6000),
    (64, 4, 128, 3000),
    (16, 2, 32, 800),
    (8, 4, 96, 1600),
    (8, 2, 256, 1600),
    (6, 7, 64, 1000),
]


@pytest.mark.parametrize("softcap", [None, 30.0])
@pytest.mark.parametrize("n", [1, 5, 100])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", [name for name in list_kernels() if name != "reference"])
def test_kernel_equals_the_loop_in_float32(name, dtype, shape, n, softcap):
    sequences, group, d, mean = shape
    try:
        decode = pick(name, CUDA, dtype, d, d, softcap is not None).decode
    except ValueError as error:
        pytest.skip(str(error))
    generator = torch.Generator().manual_seed(0)
    length = (torch.rand(sequences, generator=generator) * 2 * mean).long() + n
    length[0] = n  # nothing kept of the prompt
    capacity = length + 64
    start = capacity.cumsum(0) - capacity
    keys, values = (torch.randn(int(capacity.sum()), d, device=CUDA, dtype=dtype) for _ in range(2))
    query = torch.randn(sequences, group, n, d, device=CUDA, dtype=dtype)
    place = (start.int().to(CUDA), length.int().to(CUDA), int(length.max()), d**-0.5, softcap)
    wanted = pick("loop", CUDA, torch.float32, d, d)[1](query.float(), keys.float(), values.float(), *place)
    out = decode(query, keys, values, *place)
    assert out.dtype == dtype
    assert torch.isfinite(out).all()
    assert (out.float() - wanted).abs().max() <= (2e-2 if dtype == torch.bfloat16 else 3e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_model_on_the_gpu_equals_the_cpu(family):
    prompts, question = rows([70, 57]), rows([5, 9], seed=1)
    logits = []
    for device in ("cpu", "cuda"):
        model = tiny_model(family).to(device)
        cache = compress(model, prompts, eviction=eviction(0.3))
        logits.append(append(model, cache, question).cpu())
    assert (logits[0] - logits[1]).abs().max() <= 1e-9


@pytest.mark.parametrize("name", [name for name in list_kernels() if name not in ("reference", "loop")])
def test_answers_in_bf16_do_not_depend_on_the_kernel(name):
    model = tiny_model("llama", torch.bfloat16).cuda()
    prompts, question = rows([700, 570]), rows([5, 9], seed=1)
    try:
        cache = compress(model, prompts, eviction=eviction(0.3), attention=name)
    except ValueError as error:
        pytest.skip(str(error))
    loop = compress(model, prompts, eviction=eviction(0.3), attention="loop")
    difference = (append(model, cache, question).float() - append(model, loop, question).float()).abs().max()
    assert difference <= 0.1
    assert cache.kernel == name
    answer(model, cache, rows([1, 1], seed=3), 20)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_layers_on_several_devices(tmp_path):
    """device_map: each layer's arena lies on its layer's device; the answer is the one device's."""
    pytest.importorskip("accelerate")
    prompts, question = rows([70, 57]), rows([5, 9], seed=1)
    one = tiny_model("gemma3_text")
    one.save_pretrained(tmp_path)
    places = {
        "model.embed_tokens": 0,
        "model.layers.0": 0,
        "model.layers.1": 0,
        "model.layers.2": 1,
        "model.layers.3": 1,
    }
    places |= {"model.norm": 1, "model.rotary_emb": 0, "lm_head": 1}
    spread = AutoModelForCausalLM.from_pretrained(tmp_path, device_map=places, dtype=torch.float64).eval()
    use_ragged_attention(spread)
    cache = compress(spread, prompts, eviction=eviction(0.3))
    assert [layer.stored.arena.keys.device.index for layer in cache.layers] == [0, 0, 1, 1]
    wanted = append(one, compress(one, prompts, eviction=eviction(0.3)), question)
    assert (append(spread, cache, question).cpu() - wanted).abs().max() <= 1e-9


def test_the_arena_frees_memory():
    model = tiny_model("llama", torch.bfloat16, max_position_embeddings=40000).cuda()
    prompt = rows([32768])
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    cache = compress(model, prompt, eviction=eviction(0.2))
    assert torch.cuda.memory_allocated() - before <= 1.3 * cache.nbytes + 2**20
