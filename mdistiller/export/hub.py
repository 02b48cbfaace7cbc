"""Push an export and its card to a hub, by `huggingface_hub`."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import UserError, missing_libraries, one_line


def check_hub(repository: str) -> None:
    """Check what can be known before an export is made.

    Raises:
        UserError: the library is missing, or `repository` is not `user/name`.
    """
    try:
        from huggingface_hub.utils import HFValidationError, validate_repo_id
    except ImportError:
        raise missing_libraries("--push", "huggingface_hub") from None
    try:
        validate_repo_id(repository)
        reason = "" if "/" in repository else "it has no user"  # the hub would add one, but not to the upload
    except HFValidationError as error:
        reason = one_line(error)
    if reason:
        raise UserError(f"--push {repository!r:.120} is not the name of a repository ({reason}); give USER/NAME")


def push(export: Path, card: Path, repository: str, private: bool = False) -> str:
    """Upload an export, and its card as `README.md`, in one commit; return the address of the commit.

    The library finds the token (`hf auth login`, or `HF_TOKEN`) and the hub (`HF_ENDPOINT`).

    Args:
        export: the exported file.
        card: the Markdown file of its card.
        repository: the name of the repository, `user/name`; it is created if there is none.
        private: whether to create a private repository; a public one is refused.

    Raises:
        UserError: see `check_hub`; or the hub refuses or cannot be reached.
    """
    check_hub(repository)
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)
    operations = [
        CommitOperationAdd(path_in_repo=export.name, path_or_fileobj=export.read_bytes()),
        CommitOperationAdd(path_in_repo="README.md", path_or_fileobj=card.read_bytes()),
    ]
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        if private and not api.repo_info(repository).private:  # an existing one keeps its visibility
            raise UserError(
                f"--private, but {repository} exists and is public; make it private, or give another name. The export"
                f" stays at {export}"
            )
        commit = api.create_commit(repository, operations=operations, commit_message=f"Add {export.name}")
    except UserError:
        raise
    except Exception as error:  # of the library, its HTTP client and its checks, which have no common base
        reason = one_line(error)
        raise UserError(f"cannot push to {repository!r:.120} ({reason}); the export stays at {export}") from None
    return str(commit.commit_url)
