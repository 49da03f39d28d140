"""From --model-id and --medusa to folders the children can read: local folder, GGUF file, hub id, or the default model;
a base model, heads with the base they name, or both in one.

Looks at file names and small JSON files only; whether the weights are whole and fit is the shards' affair.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from launcher.default_model import DEFAULT_MODEL_ID, default_gguf, default_heads
from launcher.errors import LaunchError
from launcher.gguf_cache import converted_folder, is_gguf
from launcher.hub import Reference
from launcher.logs import LogWriter
from launcher.medusa import HEADS_FILES, base_of, files_of_heads, heads_file, holds_heads, is_heads
from launcher.positions import max_positions
from launcher.source import Source, local_path, open_source, read_json, refuse_revision

# Written beside converted weights by shard.convert.
NOTE_FILE = "drafthouse.json"
# Weights, configuration, tokenizer, chat template.
_MODEL_FILES = ["*.safetensors", "*.json", "*.jinja"]
# "consolidated" weights repeat the others in their first owner's layout.
_NOT_OF_A_MODEL = ["consolidated*"]


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """`model_id` is what users see; `weights_note` says what was done to the weights, "" if nothing.

    `base_name` finds the model without its heads again, from any folder: a hub id, which is then of `base_revision`, or
    an absolute path.

    `medusa_path` is the folder of Medusa heads, None where there are none or they are part of the model's own weights;
    `medusa_name` is what users see of it.
    """

    path: Path
    model_id: str
    weights_note: str
    max_positions: int | None
    base_name: str
    base_revision: str | None = None
    medusa_path: Path | None = None
    medusa_name: str = ""


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """The part of the configuration that says which model and heads, and how a GGUF is to be read.

    Without `use_heads` none are fetched or served, whatever is named.
    """

    model_id: str | None
    revision: str | None
    dtype: str
    hub_cache: str | None
    medusa: str | None = None
    medusa_revision: str | None = None
    use_heads: bool = True


def resolve(request: ModelRequest, log: LogWriter) -> ResolvedModel:
    """Downloads and converts where needed. Raises LaunchError with a message for the user."""
    model = _default(request, log) if request.model_id is None else _named(request.model_id, request, log)
    if request.medusa is None:
        return model
    if not request.use_heads:
        log.info(f"--medusa {request.medusa} is not looked at: nothing is drafted by heads")
        return model
    return _with_heads(model, _open_heads(request.medusa, request, log), log)


def _default(request: ModelRequest, log: LogWriter) -> ResolvedModel:
    refuse_revision(_model_reference("", request.revision), "not given")
    folder = converted_folder(default_gguf(log), request.dtype, log)
    model = _described(folder, DEFAULT_MODEL_ID, base_name=str(folder))
    heads = default_heads()
    if heads is None or not request.use_heads or request.medusa is not None:
        return model
    return replace(model, medusa_path=heads, medusa_name="installed with Drafthouse")


def _named(name: str, request: ModelRequest, log: LogWriter) -> ResolvedModel:
    reference = _model_reference(name, request.revision)
    opened = _open_model(reference, request, log)
    if isinstance(opened, ResolvedModel) or not is_heads(opened):
        return _served(opened, request, log)
    if request.medusa is not None:
        raise LaunchError(
            f"--model-id {name} holds Medusa heads itself, and --medusa {request.medusa} names others; "
            "name their base model with --model-id"
        )
    base = _open_model(base_of(opened), request, log)
    if isinstance(base, Source) and is_heads(base):
        raise LaunchError(f"{base.reference.asked}: it holds heads again, not a model{base.reference.advice}")
    # Heads in the base's own folder step back behind those that the user named.
    model = replace(_served(base, replace(request, use_heads=False), log), model_id=name)
    if not request.use_heads:
        log.info(f"the heads in {name} are not used: nothing is drafted by heads")
        return model
    return _with_heads(model, opened, log)


def _model_reference(name: str, revision: str | None) -> Reference:
    return Reference(name, revision, f"--model-id {name}".rstrip(), "--revision")


def _open_model(reference: Reference, request: ModelRequest, log: LogWriter) -> Source | ResolvedModel:
    """A GGUF file is resolved at once; a folder or a repository is to be looked at."""
    file = local_path(reference)
    if not file.is_file():
        return open_source(reference, request.hub_cache, log)
    refuse_revision(reference, "a file")
    if not is_gguf(file):
        raise LaunchError(f"{reference.asked}: this file is not GGUF; give a model folder, a GGUF file or a hub id")
    return _described(converted_folder(file, request.dtype, log), file.stem, base_name=str(file.resolve()))


def _served(model: Source | ResolvedModel, request: ModelRequest, log: LogWriter) -> ResolvedModel:
    """A model with its weights, and with a file of heads that lies beside them."""
    if isinstance(model, ResolvedModel):
        return model
    reference = model.reference
    heads = heads_file(model) if request.use_heads and request.medusa is None else None
    others = [file for file in HEADS_FILES if file != heads]
    folder = model.fetch([*_MODEL_FILES, *([heads] if heads else [])], log, [*_NOT_OF_A_MODEL, *others])
    if not model.is_local and not any(folder.glob("*.safetensors")):
        raise LaunchError(
            f"{reference.asked}: the repository holds no safetensors weights; "
            "for a GGUF, download the file and give its path"
        )
    described = _described(folder, reference.name, base_name=str(folder) if model.is_local else reference.name)
    described = replace(described, base_revision=reference.revision)
    return replace(described, medusa_path=folder, medusa_name=reference.name) if heads else described


def _open_heads(name: str, request: ModelRequest, log: LogWriter) -> Source:
    reference = Reference(name, request.medusa_revision, f"--medusa {name}", "--medusa-revision")
    if local_path(reference).is_file():
        raise LaunchError(f"{reference.asked}: this is a file; give the folder with the heads and their config.json")
    heads = open_source(reference, request.hub_cache, log)
    if not holds_heads(heads):
        raise LaunchError(
            f"{reference.asked} holds no Medusa heads: there is no {' or '.join(HEADS_FILES)}, "
            "and config.json names none either"
        )
    return heads


def _with_heads(model: ResolvedModel, heads: Source, log: LogWriter) -> ResolvedModel:
    folder = heads.fetch(files_of_heads(heads), log)
    return replace(model, medusa_path=folder, medusa_name=heads.reference.name)


def _described(folder: Path, model_id: str, *, base_name: str) -> ResolvedModel:
    config = read_json(folder / "config.json")
    if config is None:
        hint = "; to serve a GGUF in it, name the file" if any(folder.glob("*.gguf")) else ""
        raise LaunchError(f"{folder} holds no config.json, so it is not a model that can be served{hint}")
    note = (read_json(folder / NOTE_FILE) or {}).get("weights_note", "")
    return ResolvedModel(folder, model_id, str(note), max_positions(config), base_name)
