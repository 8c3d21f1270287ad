"""Circuits on the Hugging Face hub, or any server with its HTTP interface (environment variable HF_ENDPOINT)."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bigcircuit.circuit.folder import CIRCUIT_FILE
from bigcircuit.errors import UserError, first_line

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def is_hub_id(name: str) -> bool:
    """Whether a name is one of the hub, `organisation/name`, and not a file or folder that is here."""
    return bool(_HUB_ID.fullmatch(name)) and not name.endswith(".safetensors") and not Path(name).exists()


def download(repo_id: str, revision: str | None, token: str | None) -> Path:
    """Return the circuit file of a hub repository in the local cache. Raises UserError."""
    from huggingface_hub import hf_hub_download

    with _explained(repo_id, f"has no {CIRCUIT_FILE} that can be downloaded"):
        return Path(hf_hub_download(repo_id, CIRCUIT_FILE, revision=revision, token=token))


def upload(folder: Path, repo_id: str, private: bool | None, token: str | None, message: str) -> str:
    """Make the repository unless it exists, and upload a folder in one commit. Returns the address. Raises UserError."""
    from huggingface_hub import HfApi

    if not _HUB_ID.fullmatch(repo_id):
        raise UserError(f"{repo_id}: not a name on the hub; write organisation/name")
    api = HfApi(token=token)
    with _explained(repo_id, "cannot be written"):
        api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message)
    return f"{api.endpoint}/{repo_id}"


@contextmanager
def _explained(repo_id: str, what: str) -> Iterator[None]:
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        yield
    except (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        OSError,
        ValueError,
    ) as error:
        raise UserError(
            f"{repo_id}: {what} ({first_line(error)[:200]}); check the name, the connection and `hf auth login`"
        ) from error
