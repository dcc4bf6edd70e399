"""Uploads to the hub: a repository is created, and one commit brings card, configuration and weights."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import httpx
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from vgpo_lite.errors import ConfigError, PushError
from vgpo_lite.export.outgoing import Upload, upload_of

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Upload", "check_name", "check_token", "push", "upload_of"]

_WEIGHTS = (".safetensors", ".safetensors.index.json")
_LOGIN = "Log in with `hf auth login` and a token that may write, or set HF_TOKEN"


def check_name(repository: str) -> None:
    """See that a repository can be called that.

    Raises:
        ConfigError: It is no `owner/name`.
    """
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise ConfigError(f"--to is {repository!r}, which the hub takes for no name: {error}") from error
    if "/" not in repository:
        raise ConfigError(f"--to is {repository!r}; expected OWNER/NAME, your account or organization first.")


def check_token() -> None:
    """See that the hub can be told who uploads.

    Raises:
        PushError: There is no token.
    """
    if get_token() is None:
        raise PushError(f"the hub needs to know who uploads, and there is no token. {_LOGIN}.")


def push(upload: Upload, repository: str, *, public: bool, overwrite: bool, message: str) -> str:
    """Create the repository and commit the files to it.

    Args:
        upload: What goes there.
        repository: `owner/name`.
        public: Whether everybody may see it; an existing repository keeps what it is.
        overwrite: Whether it may exist already. Weights of it that the upload does not have are then removed, so that
            no old shard is loaded.
        message: Of the commit.

    Returns:
        The commit's address.

    Raises:
        ConfigError: The repository cannot be called that.
        PushError: There is no token, the hub refuses or cannot be reached, or the name is taken.
    """
    check_name(repository)
    check_token()
    api = HfApi()
    with _refusals_in_words(repository):
        present = _created(api, repository, public=public, overwrite=overwrite)
        old = [name for name in present if name.endswith(_WEIGHTS) and name not in upload.files]
        operations = [
            *(
                CommitOperationAdd(name, file if isinstance(file, bytes) else str(file))
                for name, file in upload.files.items()
            ),
            *(CommitOperationDelete(name) for name in old),
        ]
        commit = api.create_commit(repository, operations, commit_message=message)
    return commit.commit_url


def _created(api: HfApi, repository: str, *, public: bool, overwrite: bool) -> list[str]:
    """Create the repository; the files it holds where it exists, is empty or may be overwritten."""
    try:
        api.create_repo(repository, private=not public)
    except HfHubHTTPError as error:
        if error.response.status_code != httpx.codes.CONFLICT:
            raise
    else:
        return []
    present = api.list_repo_files(repository)
    if set(present) <= {".gitattributes"} or overwrite:
        return present
    raise PushError(
        f"{repository} exists and holds {len(present)} files. Choose another name, or add --overwrite to commit to it."
    )


@contextlib.contextmanager
def _refusals_in_words(repository: str) -> Iterator[None]:
    """What the hub or the network says, in words and with what to do.

    Raises:
        PushError: Always where the body fails by either.
    """
    try:
        yield
    except (httpx.TransportError, OfflineModeIsEnabled) as error:
        reason = str(error) or type(error).__name__
        raise PushError(
            f"{constants.ENDPOINT} cannot be reached ({reason}). Connect, and push again: what has arrived is not sent "
            "twice."
        ) from error
    except HfHubHTTPError as error:
        raise PushError(_refusal(repository, error)) from error
    except (RuntimeError, ValueError) as error:  # how the hub's client tells of storage that failed, or of a bad card
        said = str(error).partition("\n")[0]
        raise PushError(f"the upload to {repository} failed: {said}. What has arrived is not sent twice.") from error


def _refusal(repository: str, error: HfHubHTTPError) -> str:
    status, said = error.response.status_code, str(error.server_message or error).splitlines()[0]
    owner = repository.partition("/")[0]
    if status == httpx.codes.UNAUTHORIZED:
        return f"the hub does not know your token ({said}). {_LOGIN}."
    if status == httpx.codes.FORBIDDEN:
        return f"your token may not write as {owner} ({said}). Use your own account's name, or a token that may write."
    if status >= httpx.codes.INTERNAL_SERVER_ERROR:
        return f"the hub answers {status} ({said}). Push again later: {repository} holds nothing half-written."
    return f"the hub refuses {repository}: {status} ({said})."
