"""The reference is a transformers model: it is written as GGUF by this test, converted back, and must be the same."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import dequantize, quantize
from safetensors.torch import load_file
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedModel

from router.tokenizer import Tokenizer
from shard import convert as converting
from shard.convert import checkpoint_name, main
from shard.model_config import ModelConfig
from shard.rope_config import RopeConfig

HEAD_DIM, HEADS, KV_HEADS, HIDDEN, LAYERS = 16, 4, 2, 64, 2
TOKENS = ["<|end|>", "<|start|>", *sorted(ByteLevel.alphabet()), "ab", "ĠĠ", "abc"]
LAST = len(TOKENS) - 1
MERGES = ["a b", "Ġ Ġ"]  # which never make "abc"
# Of SentencePiece, by score.
PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁ab", "ab", "▁c", "▁", "a", "b", "c"]
TEMPLATE = "{% for m in messages %}<|start|>{{ m['content'] }}<|end|>{% endfor %}"
GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def make_model(*, tied: bool, vocab_size: int = len(TOKENS), rope: dict[str, object] | None = None) -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=HIDDEN,
        intermediate_size=96,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        max_position_embeddings=128,
        rope_parameters=rope or {"rope_type": "default", "rope_theta": 5000.0},
        tie_word_embeddings=tied,
        initializer_range=0.3,
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def gguf_name(name: str) -> str:
    if name == "model.embed_tokens.weight":
        return "token_embd.weight"
    if name == "model.norm.weight":
        return "output_norm.weight"
    if name == "lm_head.weight":
        return "output.weight"
    _, _, layer, rest = name.split(".", 3)
    stem, _, kind = rest.rpartition(".")
    return f"blk.{layer}.{GGUF_NAMES[stem]}.{kind}"


def interleaved(rows: np.ndarray) -> np.ndarray:
    """Row i and row i + d/2 of each head become neighbours, one row at a time."""
    half = HEAD_DIM // 2
    order = [
        head + pair + part * half for head in range(0, len(rows), HEAD_DIM) for pair in range(half) for part in (0, 1)
    ]
    return rows[order]


def add_tokens(writer: GGUFWriter, pre: str, last: str | None) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([*TOKENS[:-1], last or TOKENS[-1]])
    writer.add_token_types([3, 3] + [1] * (len(TOKENS) - 3) + [3 if last else 1])
    writer.add_token_merges(MERGES)


def add_pieces(writer: GGUFWriter) -> None:
    writer.add_tokenizer_model("llama")
    writer.add_token_list(PIECES)
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * (len(PIECES) - 259))
    writer.add_token_scores([-float(number) for number in range(len(PIECES))])


def write_gguf(
    path: Path,
    model: PreTrainedModel,
    *,
    quantized: bool = False,
    architecture: str = "llama",
    pre: str | None = "gpt-2",
    add_bos: bool | None = False,
    space_prefix: bool | None = None,
    last: str | None = None,
    others: dict[str, int] | None = None,
    rope_scaling: str | None = None,
    rope_factor: float | None = None,
    head_dim: int = HEAD_DIM,
    rotated: int | None = None,
    leave_out: str | None = None,
    extra: str | None = None,
    rope_factors: list[float] | None = None,
) -> dict[str, np.ndarray]:
    """Writes `model` as llama.cpp's converter would; returns the values that the file holds, by checkpoint name.

    Without `pre` its tokenizer is SentencePiece's, of PIECES. `last` is a control token in place of the last of TOKENS,
    `others` are ids of special tokens by what they are for.
    """
    writer = GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(96)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(rotated or head_dim)
    writer.add_key_length(head_dim)
    writer.add_rope_freq_base(5000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(len(TOKENS if pre else PIECES))
    if rope_scaling is not None:
        writer.add_string(f"{architecture}.rope.scaling.type", rope_scaling)
    if rope_factor is not None:
        writer.add_float32(f"{architecture}.rope.scaling.factor", rope_factor)
    if pre:
        add_tokens(writer, pre, last)
    else:
        add_pieces(writer)
    if add_bos is not None:
        writer.add_add_bos_token(add_bos)
    ends = {"bos": 1, "eos": 0} if pre else {"unknown": 0, "bos": 1, "eos": 2}
    for name, token_id in (ends | (others or {})).items():
        writer.add_uint32(f"tokenizer.ggml.{name}_token_id", token_id)
    if space_prefix is not None:
        writer.add_add_space_prefix(space_prefix)
    writer.add_chat_template(TEMPLATE)
    held = {}
    for name, parameter in model.named_parameters():
        if name == leave_out:
            continue
        values = parameter.detach().numpy()
        as_stored = interleaved(values) if ".q_proj." in name or ".k_proj." in name else values
        if quantized and values.ndim == 2:
            packed = quantize(as_stored, GGMLQuantizationType.Q8_0)
            writer.add_tensor(gguf_name(name), packed, raw_dtype=GGMLQuantizationType.Q8_0)
            # Rows are quantized one by one, so their order makes no difference to their values.
            values = dequantize(quantize(values, GGMLQuantizationType.Q8_0), GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(gguf_name(name), as_stored)
        held[name] = values
    if rope_factors is not None:
        writer.add_tensor("rope_freqs.weight", np.array(rope_factors, dtype=np.float32))
    if extra is not None:
        writer.add_tensor(extra, np.ones(8, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return held


def llama3_factors(factor: float, *, original: int = 8192) -> list[float]:
    """What llama.cpp's converter makes of Llama 3's rope scaling, frequency by frequency."""
    factors = []
    for pair in range(HEAD_DIM // 2):
        wave = 2 * math.pi * 5000.0 ** (2 * pair / HEAD_DIM)
        smooth = (original / wave - 1.0) / (4.0 - 1.0)
        blended = 1 / ((1 - smooth) / factor + smooth)
        factors.append(1.0 if wave < original / 4.0 else factor if wave > original / 1.0 else blended)
    return factors


def run(gguf: Path, output: Path, dtype: str = "float32") -> int:
    return main(["--gguf", str(gguf), "--output", str(output), "--dtype", dtype])


@pytest.mark.parametrize("tied", [True, False])
def test_a_converted_model_computes_what_the_original_does(tmp_path: Path, tied: bool) -> None:
    model = make_model(tied=tied)
    write_gguf(tmp_path / "tiny.gguf", model)
    assert run(tmp_path / "tiny.gguf", tmp_path / "out") == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["tie_word_embeddings"], config["model_type"], config["head_dim"]) == (tied, "llama", HEAD_DIM)
    assert "quantization_config" not in config
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"] == 0
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    token_ids = torch.arange(2, 34)[None]
    with torch.inference_mode():
        torch.testing.assert_close(loaded(token_ids).logits, model(token_ids).logits, rtol=0, atol=0)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama_3s_rope_scaling_is_read_back_from_its_factors(tmp_path: Path, factor: float) -> None:
    factors = llama3_factors(factor)
    assert 1 < factors[-2] < factor == factors[-1]
    rope = {"rope_type": "llama3", "rope_theta": 5000.0, "factor": factor, "original_max_position_embeddings": 8192}
    model = make_model(tied=True, rope=rope | {"low_freq_factor": 1.0, "high_freq_factor": 4.0})
    write_gguf(tmp_path / "tiny.gguf", model, rope_factors=factors)
    assert run(tmp_path / "tiny.gguf", tmp_path / "out") == 0
    assert ModelConfig.from_folder(tmp_path / "out").ropes[0] == RopeConfig(
        "llama3", 5000.0, factor, 8192, low_freq_factor=1.0, high_freq_factor=4.0
    )
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    token_ids = torch.arange(2, 34)[None]
    with torch.inference_mode():
        torch.testing.assert_close(loaded(token_ids).logits, model(token_ids).logits, rtol=0, atol=0)


def test_quantized_values_are_kept_exactly_and_noted(tmp_path: Path) -> None:
    held = write_gguf(tmp_path / "tiny.gguf", make_model(tied=True), quantized=True)
    assert run(tmp_path / "tiny.gguf", tmp_path / "out", "bfloat16") == 0
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert weights.keys() == held.keys()
    for name, values in held.items():
        assert torch.equal(weights[name], torch.from_numpy(values).to(torch.bfloat16)), name
    note = json.loads((tmp_path / "out" / "drafthouse.json").read_text())["weights_note"]
    assert note == "dequantized from Q8_0"


def test_the_tokenizer_and_the_chat_template_come_along(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", make_model(tied=True))
    assert run(tmp_path / "tiny.gguf", tmp_path / "out") == 0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "<|start|>a é\n<|end|>"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("<|end|>") == [0]
    assert len(tokenizer) == len(TOKENS)
    assert max(tokenizer.encode("<|endoftext|>")) < len(TOKENS)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "<|start|>hi<|end|>"


def test_smollm_sets_digits_apart_before_it_looks_at_spaces(tmp_path: Path) -> None:
    # Two spaces before a digit stay together; before a letter the second one belongs to the word.
    write_gguf(tmp_path / "tiny.gguf", make_model(tied=True), pre="smollm")
    assert run(tmp_path / "tiny.gguf", tmp_path / "out") == 0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.tokenize("x  1") == ["x", "ĠĠ", "1"]
    assert tokenizer.tokenize("x  y") == ["x", "Ġ", "Ġ", "y"]


@pytest.mark.parametrize("others", [{}, {"bos": LAST, "eos": LAST}])
def test_a_special_token_of_any_letters_stays_whole(tmp_path: Path, others: dict[str, int]) -> None:
    # DeepSeek's bars are not among the letters that stand for bytes.
    name = "<｜end▁of▁sentence｜>"
    gguf, adds_bos = tmp_path / "tiny.gguf", bool(others)
    write_gguf(gguf, make_model(tied=True), pre="deepseek-r1-qwen", last=name, others=others, add_bos=adds_bos)
    assert run(gguf, tmp_path / "out") == 0
    tokenizer = Tokenizer.from_folder(tmp_path / "out")
    text = tokenizer.encode(f"ab{name}")
    assert text == [LAST] * adds_bos + [TOKENS.index("ab"), LAST]
    assert tokenizer.decode(text) == "ab"
    assert LAST in tokenizer.eos_token_ids
    assert max(tokenizer.encode("<|endoftext|>")) < len(TOKENS)


@pytest.mark.parametrize(
    ("others", "last", "ends"),
    [
        ({}, None, 0),
        ({"eot": 5}, None, [0, 5]),
        ({"eot": 0, "eom": 7}, None, [0, 7]),
        ({"eot": LAST, "eom": 7}, "<|eot_id|>", [0, LAST, 7]),
        ({}, "<|im_end|>", [0, LAST]),
        ({}, "<|endoftext|>", [0, LAST]),
        ({"unknown": LAST}, "<|endoftext|>", 0),
        ({}, "<|middle|>", 0),
    ],
)
def test_an_answer_ends_at_whatever_the_file_knows_as_an_end(
    tmp_path: Path, others: dict[str, int], last: str | None, ends: int | list[int]
) -> None:
    write_gguf(tmp_path / "tiny.gguf", make_model(tied=True), others=others, last=last)
    assert run(tmp_path / "tiny.gguf", tmp_path / "out") == 0
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"] == ends
    expected = {ends} if isinstance(ends, int) else set(ends)
    assert Tokenizer.from_folder(tmp_path / "out").eos_token_ids == expected


@pytest.mark.parametrize(("pre", "tokens"), [("llama-bpe", ["abc"]), ("qwen2", ["ab", "c"])])
def test_llama3_takes_a_word_that_is_a_token_as_it_is(tmp_path: Path, pre: str, tokens: list[str]) -> None:
    write_gguf(tmp_path / "tiny.gguf", make_model(tied=True), pre=pre)
    assert run(tmp_path / "tiny.gguf", tmp_path / "out") == 0
    assert AutoTokenizer.from_pretrained(tmp_path / "out").tokenize("abc") == tokens


@pytest.mark.parametrize(
    ("pre", "add_bos", "adds"),
    [
        ("llama3", None, True),
        ("llama3", False, False),
        ("qwen2", None, False),
        ("qwen2", True, True),
        (None, None, True),
        (None, False, False),
    ],
)
def test_a_text_begins_with_bos_where_llama_cpp_begins_it_so(
    tmp_path: Path, pre: str | None, add_bos: bool | None, adds: bool
) -> None:
    model = make_model(tied=True, vocab_size=len(TOKENS if pre else PIECES))
    write_gguf(tmp_path / "tiny.gguf", model, pre=pre, add_bos=add_bos)
    assert run(tmp_path / "tiny.gguf", tmp_path / "out") == 0
    assert (AutoTokenizer.from_pretrained(tmp_path / "out").encode("ab")[0] == 1) is adds


@pytest.mark.parametrize(("space_prefix", "first"), [(None, "▁ab"), (True, "▁ab"), (False, "ab")])
def test_a_text_begins_with_a_space_unless_the_file_says_no(
    tmp_path: Path, space_prefix: bool | None, first: str
) -> None:
    model = make_model(tied=True, vocab_size=len(PIECES))
    write_gguf(tmp_path / "tiny.gguf", model, pre=None, add_bos=True, space_prefix=space_prefix)
    assert run(tmp_path / "tiny.gguf", tmp_path / "out") == 0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("ab c")) == ["<s>", first, "▁c"]
    for text in ("ab c", "c  ab"):
        assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) == text
    if space_prefix is False:
        assert tokenizer.decode(tokenizer.encode(" c"), skip_special_tokens=True) == " c"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"architecture": "gptneox"}, "its architecture is gptneox"),
        ({"rope_scaling": "linear"}, "rope scaling (linear)"),
        ({"rope_factor": 4.0}, "rope scaling (4.0)"),
        ({"rotated": 8}, "8 of the 16 values of a head are rotated"),
        ({"head_dim": 32}, "its tensors and metadata do not make a model"),
        ({"pre": "poro-chat"}, "splits text in a way that is not known here (poro-chat)"),
        ({"rope_factors": [2.0] * 8}, "its rope scaling (rope_freqs.weight) is none of Llama 3's"),
        ({"rope_factors": llama3_factors(8.0, original=8000)}, "is none of Llama 3's; use the safetensors"),
        ({"rope_factors": llama3_factors(8.0)[:7]}, "is none of Llama 3's"),
        ({"rope_factors": [float("nan")] * 8}, "is none of Llama 3's"),
        ({"extra": "rope_factors_long.weight"}, "its tensor rope_factors_long.weight has no place"),
        ({"extra": "blk.0.attn_sinks.weight"}, "its tensor blk.0.attn_sinks.weight has no place"),
        ({"leave_out": "model.layers.1.mlp.up_proj.weight"}, "lacks the tensor for model.layers.1.mlp.up_proj.weight"),
    ],
)
def test_what_would_not_come_out_exactly_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: dict[str, object], message: str
) -> None:
    write_gguf(tmp_path / "tiny.gguf", make_model(tied=True), **settings)  # type: ignore[arg-type]
    assert run(tmp_path / "tiny.gguf", tmp_path / "out") == 1
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_a_reader_that_changes_a_value_is_noticed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_gguf(tmp_path / "tiny.gguf", make_model(tied=True))
    read = converting.AutoModelForCausalLM.from_pretrained

    def read_wrongly(*args: object, **kwargs: object) -> PreTrainedModel:
        model = read(*args, **kwargs)
        with torch.no_grad():
            model.model.layers[1].self_attn.k_proj.weight[3, 5] += 1e-3
        return model

    monkeypatch.setattr(converting.AutoModelForCausalLM, "from_pretrained", read_wrongly)
    assert run(tmp_path / "tiny.gguf", tmp_path / "out") == 1
    assert "its tensor blk.1.attn_k.weight (F32) does not come out exactly" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"PK\x03\x04 no such thing", b"GGUF", b""])
def test_a_damaged_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes) -> None:
    (tmp_path / "tiny.gguf").write_bytes(content)
    assert run(tmp_path / "tiny.gguf", tmp_path / "out") == 1
    assert "damaged or not GGUF" in capsys.readouterr().err


def test_a_file_that_was_cut_short_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_gguf(tmp_path / "tiny.gguf", make_model(tied=True))
    whole = (tmp_path / "tiny.gguf").read_bytes()
    (tmp_path / "tiny.gguf").write_bytes(whole[: len(whole) // 2])
    assert run(tmp_path / "tiny.gguf", tmp_path / "out") == 1
    assert "damaged or not GGUF" in capsys.readouterr().err


def test_only_known_tensor_names_have_a_place() -> None:
    assert checkpoint_name("blk.12.attn_q_norm.weight") == "model.layers.12.self_attn.q_norm.weight"
    assert checkpoint_name("blk.0.attn_q.bias") == "model.layers.0.self_attn.q_proj.bias"
    assert checkpoint_name("blk.x.attn_q.weight") is None
    assert checkpoint_name("blk.0.attn_q.scale") is None
