"""`python -m shard.convert --gguf FILE --output FOLDER --dtype …`: a GGUF file as a checkpoint of safetensors.

transformers reads the file; what it made of it is then compared, tensor by tensor, with the file's own values (package
gguf, an independent reader). Only files that come out exactly are accepted, any other is refused with one line on
stderr, because both readers skip in silence what they do not know. Progress goes to stdout. Owns the note beside the
weights (`drafthouse.json`); knows nothing of where converted models are kept.
"""

import argparse
import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader, ReaderTensor
from gguf.quants import dequantize
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from shard.gguf_tokenizer import PRE_TOKENIZERS, drop_invented_tokens, ends_of, load_tokenizer, text_of
from shard.layers.rotary import inverse_frequencies
from shard.rope_config import RopeConfig

NOTE_FILE = "drafthouse.json"

# The families whose tensor names and row order in GGUF are written down below.
ARCHITECTURES = ("llama", "qwen3")
# What all of Llama 3.1, 3.2 and 3.3 have but the factor.
LLAMA3_SCALING: dict[str, Any] = {
    "original_max_position_embeddings": 8192,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
UNQUANTIZED = ("F32", "F16", "BF16")

_TOP_LEVEL = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_IN_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


class ConversionError(Exception):
    """The file cannot be converted exactly; the message is for the user."""


def convert(gguf: Path, output: Path, dtype: torch.dtype) -> None:
    """Writes config, generation config, weights, tokenizer, chat template and note. Raises ConversionError."""
    reader = _open(gguf)
    architecture = _check_metadata(reader)
    _say(f"reading {len(reader.tensors)} tensors")
    try:
        loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    except Exception as error:  # whatever the library trips over, of any class
        raise ConversionError(f"its tensors and metadata do not make a model ({error})") from error
    if loaded.config.model_type != architecture:
        raise ConversionError(f"its architecture {architecture} is read as {loaded.config.model_type}")
    _restore_rope(reader, loaded.config, architecture)
    _say("comparing them with the file")
    _check_tensors(reader, loaded, architecture)
    tokenizer = load_tokenizer(gguf, reader)
    _say("writing safetensors")
    output.mkdir(parents=True, exist_ok=True)
    loaded.generation_config.eos_token_id = ends_of(reader, loaded.generation_config.eos_token_id)
    _writable_copy(loaded, dtype).save_pretrained(output)
    tokenizer.save_pretrained(output)
    drop_invented_tokens(output, vocab_size=loaded.config.vocab_size)
    (output / NOTE_FILE).write_text(json.dumps({"weights_note": weights_note(reader.tensors)}) + "\n", encoding="utf-8")


def weights_note(tensors: list[ReaderTensor]) -> str:
    """What happened to the weights, for people: quantized types by how many tensors have them."""
    types = [name for name, _ in Counter(tensor.tensor_type.name for tensor in tensors).most_common()]
    quantized = [name for name in types if name not in UNQUANTIZED]
    return f"dequantized from {', '.join(quantized)}" if quantized else f"converted from GGUF ({', '.join(types)})"


def checkpoint_name(gguf_name: str) -> str | None:
    """The name a tensor of the file has in a transformers checkpoint; None if it is not known here."""
    stem, _, kind = gguf_name.rpartition(".")
    if kind not in ("weight", "bias"):
        return None
    if stem in _TOP_LEVEL:
        return f"{_TOP_LEVEL[stem]}.{kind}"
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
    if match is None or match[2] not in _IN_LAYER:
        return None
    return f"model.layers.{match[1]}.{_IN_LAYER[match[2]]}.{kind}"


def _open(gguf: Path) -> GGUFReader:
    try:
        return GGUFReader(gguf)
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise ConversionError(f"the file is damaged or not GGUF ({error})") from error


def _check_metadata(reader: GGUFReader) -> str:
    """The architecture. Refuses what transformers would leave out without saying so."""
    architecture = text_of(reader, "general.architecture")
    if architecture not in ARCHITECTURES:
        raise ConversionError(f"its architecture is {architecture or 'not given'}; {', '.join(ARCHITECTURES)} can be")
    scaling = text_of(reader, f"{architecture}.rope.scaling.type")
    if scaling not in (None, "none"):
        raise ConversionError(f"its rope scaling ({scaling}) cannot be carried over; use the safetensors of this model")
    for key in (f"{architecture}.rope.scaling.factor", f"{architecture}.rope.scale_linear"):
        # Old files name no type and mean a linear one.
        if scaling is None and (factor := text_of(reader, key)) is not None and float(factor) not in (0.0, 1.0):
            raise ConversionError(
                f"its rope scaling ({factor}) cannot be carried over; use the safetensors of this model"
            )
    head_dim, rotated = (
        text_of(reader, f"{architecture}.{key}") for key in ("attention.key_length", "rope.dimension_count")
    )
    if None not in (head_dim, rotated) and head_dim != rotated:
        raise ConversionError(f"{rotated} of the {head_dim} values of a head are rotated; only all can be")
    model, split = text_of(reader, "tokenizer.ggml.model"), text_of(reader, "tokenizer.ggml.pre")
    if model == "gpt2" and split not in PRE_TOKENIZERS:
        raise ConversionError(f"its tokenizer splits text in a way that is not known here ({split or 'not given'})")
    return architecture


def _is_rope_factors(tensor: ReaderTensor, architecture: str) -> bool:
    """By what each frequency is divided."""
    return architecture == "llama" and tensor.name == "rope_freqs.weight"


def _restore_rope(reader: GGUFReader, config: PretrainedConfig, architecture: str) -> None:
    """Puts back Llama 3's rope scaling, of which a file has but the factors that follow from it."""
    for tensor in reader.tensors:
        if not _is_rope_factors(tensor, architecture):
            continue
        factors = np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        theta = config.rope_parameters["rope_theta"]
        scaling = LLAMA3_SCALING | {"factor": float(factors.max())}
        plain = inverse_frequencies(RopeConfig("default", theta), config.head_dim)
        scaled = inverse_frequencies(RopeConfig("llama3", theta, **scaling), config.head_dim)
        # Far less than another scaling makes, and more than the rounding of another machine.
        expected = (plain / scaled).numpy()
        if factors.shape != expected.shape or not np.allclose(factors, expected, rtol=1e-5, atol=0):
            raise ConversionError(
                f"its rope scaling ({tensor.name}) is none of Llama 3's; use the safetensors of this model"
            )
        config.rope_parameters = {"rope_type": "llama3", "rope_theta": theta, **scaling}


def _check_tensors(reader: GGUFReader, model: PreTrainedModel, architecture: str) -> None:
    """Every tensor of the file is in the model with exactly its values, and the model has no others."""
    parameters = dict(model.named_parameters())  # a tied lm_head is not listed twice
    for tensor in reader.tensors:
        if _is_rope_factors(tensor, architecture):
            continue
        name = checkpoint_name(tensor.name)
        if name is None or name not in parameters:
            raise ConversionError(f"its tensor {tensor.name} has no place in a {architecture} model")
        expected = np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        if architecture == "llama" and name.endswith(("q_proj.weight", "k_proj.weight", "q_proj.bias", "k_proj.bias")):
            expected = _half_rotation_order(expected, head_dim=model.config.head_dim)
        if not np.array_equal(parameters.pop(name).detach().numpy(), expected):
            raise ConversionError(f"its tensor {tensor.name} ({tensor.tensor_type.name}) does not come out exactly")
    if parameters:
        raise ConversionError(f"it lacks the tensor for {next(iter(parameters))}")


def _half_rotation_order(rows: np.ndarray, *, head_dim: int) -> np.ndarray:
    """A head's rows from GGUF's order, where rotated pairs are neighbours, to halves: pair i is rows i and i + d/2."""
    pairs = rows.reshape(-1, head_dim // 2, 2, *rows.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(rows.shape))


def _writable_copy(loaded: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The same weights in a model that does not take itself for quantized, which transformers refuses to save."""
    plain = {key: value for key, value in loaded.config.to_dict().items() if key != "quantization_config"}
    config = AutoConfig.for_model(**plain)
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)  # type: ignore[no-untyped-call]
    weights = {key: value.to(dtype) for key, value in loaded.state_dict().items()}
    model.load_state_dict(weights, strict=True, assign=True)
    model.tie_weights()
    model.config.dtype = dtype
    model.generation_config = loaded.generation_config
    return model


def _say(progress: str) -> None:
    print(progress, flush=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m shard.convert", description="Convert a GGUF file to safetensors.")
    parser.add_argument("--gguf", type=Path, required=True, help="the file to read")
    parser.add_argument("--output", type=Path, required=True, help="the folder to write")
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], required=True)
    flags = parser.parse_args(argv)
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        convert(flags.gguf, flags.output, getattr(torch, flags.dtype))
    except ConversionError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
