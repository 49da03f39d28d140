"""Brings models and heads from the Hugging Face hub: only the files that are asked for, with clear errors.

Knows file names and patterns, not what is in the files.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from launcher.errors import LaunchError
from launcher.logs import LogWriter

# Files in sub-folders are other formats or training leftovers.
_UNWANTED = ["*/*"]


@dataclass(frozen=True, slots=True)
class Reference:
    """Something named by a flag or by a file. `asked`: how errors call it; `advice`: what they say to do instead."""

    name: str
    revision: str | None
    asked: str
    revision_flag: str
    advice: str = ""


def download(
    reference: Reference, cache: str | None, wanted: list[str], log: LogWriter, unwanted: list[str] | None = None
) -> Path:
    """The folder with the files of a repository that match `wanted`, from the cache where they are already there.

    Progress goes to stderr. Raises LaunchError.
    """
    log.info(f"looking for {_described(reference)} on the hub; what is missing is downloaded")
    return _snapshot(reference, cache, wanted, [*_UNWANTED, *(unwanted or [])])


def look_into(reference: Reference, cache: str | None, log: LogWriter) -> tuple[Path, frozenset[str]]:
    """A folder with the repository's config.json, if it has one, and the names of all its files outside sub-folders.

    Where the hub cannot be reached, those in the cache. Raises LaunchError.
    """
    # Imported here, as below: half a second that a local model need not pay.
    from huggingface_hub import list_repo_files

    folder = _snapshot(reference, cache, ["config.json"], _UNWANTED)
    try:
        names = list_repo_files(reference.name, revision=reference.revision)
    except Exception:
        # Offline, or any error of the transport. Where the cache holds nothing either, the call before has said what is
        # wrong.
        log.info(f"the hub does not answer: {_described(reference)} is taken from the cache, with what is there of it")
        names = [path.name for path in folder.iterdir()]
    return folder, frozenset(name for name in names if "/" not in name)


def _snapshot(reference: Reference, cache: str | None, wanted: list[str], unwanted: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    with _clear_errors(reference):
        folder = snapshot_download(
            reference.name,
            revision=reference.revision,
            cache_dir=cache,
            allow_patterns=wanted,
            ignore_patterns=unwanted,
        )
    return Path(folder)


@contextmanager
def _clear_errors(reference: Reference) -> Iterator[None]:
    from huggingface_hub import errors as hub

    asked, advice = reference.asked, reference.advice
    try:
        yield
    except hub.HFValidationError as error:
        raise LaunchError(f"{asked}: neither a file or folder here nor a valid hub id{advice}") from error
    except hub.GatedRepoError as error:
        raise LaunchError(
            f"{asked}: the repository is gated; accept its terms on its hub page and set HF_TOKEN"
        ) from error
    except hub.RepositoryNotFoundError as error:
        raise LaunchError(
            f"{asked}: neither a file or folder here nor a repository on the hub (if it is private, set HF_TOKEN)"
            f"{advice}"
        ) from error
    except hub.RevisionNotFoundError as error:
        raise LaunchError(
            f"{reference.revision_flag} {reference.revision}: {reference.name} has no such branch, tag or commit"
        ) from error
    except (hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled) as error:
        raise LaunchError(
            f"{asked}: not a file or folder here, not in the cache, and the hub cannot be reached; "
            f"check the network and HF_HUB_OFFLINE, or give a local folder{advice}"
        ) from error
    except Exception as error:
        # The hub's own errors, a full disk, and those of the transport, whose classes depend on the client's version.
        raise LaunchError(f"{asked}: the download failed ({_first_line(error)}); try again") from error


def _described(reference: Reference) -> str:
    return f"{reference.name} (revision {reference.revision})" if reference.revision else reference.name


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
