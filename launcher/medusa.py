"""Medusa heads by their files: what a folder or repository of heads looks like, which of its files are needed, and
which base model it names.

Formats: v1 and v2 of github.com/FasterDecoding/Medusa, and vLLM's own (`model_type` "medusa"). Counting, checking and
reading the heads is the shards' affair; here nothing but names and config.json is looked at.
"""

from pathlib import Path

from launcher.errors import LaunchError
from launcher.hub import Reference
from launcher.source import Source

# By preference: a .pt is read only where there is no safetensors.
HEADS_FILES = ("medusa_lm_head.safetensors", "medusa_lm_head.pt")
# Of the base, where heads were trained on another than its main branch. Our own key; other servers do not look at it.
BASE_REVISION = "base_model_revision"
_SMALL_FILES = ["config.json", "drafthouse_medusa.json"]


def is_heads(source: Source) -> bool:
    """Whether `source` is heads and nothing else, to be served with a base model.

    `architectures` says nothing: some heads carry their base's.
    """
    config = source.config or {}
    model_type = config.get("model_type")
    if model_type == "medusa":
        return True
    if _has_model_weights(source):
        return False
    if not source.names.isdisjoint(HEADS_FILES):
        return True
    return not model_type and ("medusa_num_heads" in config or "base_model_name_or_path" in config)


def holds_heads(source: Source) -> bool:
    """Whether heads can be taken from `source` for another model: from heads, or from a model that came with some."""
    return is_heads(source) or heads_file(source) is not None or "medusa_num_heads" in (source.config or {})


def _has_model_weights(source: Source) -> bool:
    return any(name.startswith("model") and name.endswith(".safetensors") for name in source.names)


def heads_file(source: Source) -> str | None:
    """The file of heads that stand beside other weights or alone; None where there is none, as in vLLM's own format."""
    return next((name for name in HEADS_FILES if name in source.names), None)


def files_of_heads(source: Source) -> list[str]:
    """Patterns of what to fetch of a source that `holds_heads`; the tokenizer is the base's. Raises LaunchError."""
    file = heads_file(source)
    if file is not None:
        return [*_SMALL_FILES, file]
    if _has_model_weights(source):
        return [*_SMALL_FILES, "model*.safetensors", "model.safetensors.index.json"]
    raise LaunchError(
        f"{source.reference.asked} holds no weights of Medusa heads: there is no {', '.join(HEADS_FILES)} or "
        "model.safetensors"
    )


def base_of(heads: Source) -> Reference:
    """The base model that heads name: a hub id, or a path, relative to the heads' folder or beside it.

    It has its own revision, which the heads may name too: the user's belongs to the heads. Raises LaunchError where no
    base is named.
    """
    name = heads.reference.name
    config = heads.config or {}
    base, revision = config.get("base_model_name_or_path"), config.get(BASE_REVISION)
    instead = f"--model-id BASE --medusa {name}"
    if not isinstance(base, str) or not base:
        raise LaunchError(
            f"{heads.reference.asked} holds Medusa heads and does not say for which model; serve it with {instead}"
        )
    return Reference(
        name=str(_beside(heads.folder, base) or base) if heads.is_local else base,
        revision=revision if isinstance(revision, str) else None,
        asked=f"base model {base}, named by the heads {name}",
        revision_flag=f"{BASE_REVISION} of {name}:",
        advice=f"; if it has moved, serve it with {instead}",
    )


def _beside(folder: Path, base: str) -> Path | None:
    candidates = (folder / base, folder.parent / base)
    return next((path.resolve() for path in candidates if path.exists()), None)
