"""Brings a model from the Hugging Face hub: only the files that serving needs, with clear errors."""

from pathlib import Path

from launcher.errors import LaunchError
from launcher.logs import LogWriter

# Weights, configuration, tokenizer, chat template. Files in sub-folders are other formats or training leftovers, and
# "consolidated" weights repeat the others in their first owner's layout.
WANTED = ["*.safetensors", "*.json", "*.jinja"]
UNWANTED = ["*/*", "consolidated*"]


def download(model_id: str, revision: str | None, cache: str | None, log: LogWriter) -> Path:
    """The folder with `model_id`, from the cache where it is already there. Progress goes to stderr."""
    # Imported here: half a second that a local model need not pay.
    from huggingface_hub import errors as hub
    from huggingface_hub import snapshot_download

    wanted = f"{model_id} (revision {revision})" if revision else model_id
    log.info(f"looking for {wanted} on the hub; what is missing is downloaded")
    try:
        folder = Path(
            snapshot_download(
                model_id, revision=revision, cache_dir=cache, allow_patterns=WANTED, ignore_patterns=UNWANTED
            )
        )
    except hub.HFValidationError as error:
        raise LaunchError(f"--model-id {model_id}: neither a file or folder here nor a valid hub id") from error
    except hub.GatedRepoError as error:
        raise LaunchError(
            f"--model-id {model_id}: this model is gated; accept its terms on its hub page and set HF_TOKEN"
        ) from error
    except hub.RepositoryNotFoundError as error:
        raise LaunchError(
            f"--model-id {model_id}: neither a file or folder here nor a model on the hub "
            "(if it is private, set HF_TOKEN)"
        ) from error
    except hub.RevisionNotFoundError as error:
        raise LaunchError(f"--revision {revision}: {model_id} has no such branch, tag or commit") from error
    except (hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled) as error:
        raise LaunchError(
            f"--model-id {model_id}: not a file or folder here, not in the cache, and the hub cannot be reached; "
            "check the network and HF_HUB_OFFLINE, or give a local folder"
        ) from error
    except (hub.HfHubHTTPError, OSError) as error:
        raise LaunchError(f"--model-id {model_id}: the download failed ({_first_line(error)}); try again") from error
    if not any(folder.glob("*.safetensors")):
        raise LaunchError(
            f"--model-id {wanted}: the repository holds no safetensors weights; "
            "for a GGUF, download the file and give its path"
        )
    return folder


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
