"""Turn what a library raises on files of the user (model, tokenizer, adapter) into one line, and its reports into none."""

import logging
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bigcircuit.errors import ReportedError, UserError
from bigcircuit.runtime.host_memory import is_out_of_memory

_LFS = b"version https://git-lfs"
_LARGEST_POINTER = 1024
"""Bytes; a git-lfs pointer has about 130."""
_LONGEST = 300
"""Characters of a library's message that are shown."""
_OF_RANKS = ("/torch/distributed/", "/deepspeed/")
"""Folders of libraries whose errors are about other ranks or the DeepSpeed config, and not about files."""


def quieten_libraries() -> None:
    """Keep reports about kernels that are not used here, and about what torchao registers, off the terminal; peft loads it too."""
    for library in ("torchao", "bitsandbytes", "compressed_tensors", "torch.utils._pytree"):
        logging.getLogger(library).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".is_gradient_checkpointing. is deprecated", category=FutureWarning)


@contextmanager
def explain_library_errors(subject: str, folder: Path | None, remedy: str) -> Iterator[None]:
    """Turn any exception that a library raises inside into a UserError.

    subject: the setting with its value, and what cannot be done. folder: with the files that are read, None if they are not on this
    machine; a git-lfs pointer there is named as the cause. Memory that does not suffice and errors of other ranks pass.
    """
    try:
        yield
    except (ReportedError, MemoryError):
        raise
    except BaseException as error:  # a panic in the Rust code of tokenizers is no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        if isinstance(error, RuntimeError) and (is_out_of_memory(error) or _is_of_ranks(error)):
            raise
        pointer = None if folder is None else git_lfs_pointer(folder)
        if pointer is not None:
            raise UserError(f"{subject}: {pointer} is a pointer of git-lfs; run git lfs pull there") from error
        raise UserError(f"{subject} ({library_message(error)}); {remedy}") from error


def library_message(error: BaseException) -> str:
    """Shorten a library's message to one line: the first that says something, after the class of an unusual error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    text = " ".join(lines[: 2 if lines[0].endswith(":") else 1])
    if not text or not isinstance(error, (OSError, ValueError, ImportError)) or isinstance(error, UnicodeError):
        text = f"{type(error).__name__}{f': {text}' if text else ''}"
    return f"{text[:_LONGEST]}..." if len(text) > _LONGEST else text


def git_lfs_pointer(folder: Path) -> str | None:
    """Return the name of a file in a folder that is a git-lfs pointer in place of its content, None if there is none."""
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.stat().st_size <= _LARGEST_POINTER:
            with path.open("rb") as file:
                if file.read(len(_LFS)) == _LFS:
                    return path.name
    return None


def _is_of_ranks(error: RuntimeError) -> bool:
    frames = traceback.extract_tb(error.__traceback__)
    return any(part in frame.filename for frame in frames for part in _OF_RANKS)
