"""One process per GPU: the tensor-parallel model, its KV cache, sampling and speculation."""
