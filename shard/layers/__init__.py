"""Tensor-parallel layers. They take full sizes and shard inside, so that a model file reads like single-GPU code."""
