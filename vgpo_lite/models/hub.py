"""Where a model's files are: the built-in folder, a local one, or a snapshot of the hub at a recorded commit.

Everything that can be known before gigabytes are fetched is checked before: the name, the access, the architecture, the
number format, the size against the free disk. Only JSON, text and safetensors are ever fetched or read.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import yaml
from huggingface_hub import HfApi, constants, get_token, hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from vgpo_lite.config.problems import nearest
from vgpo_lite.config.recipes import recipe_names, recipe_path
from vgpo_lite.errors import ModelError, StorageError
from vgpo_lite.models.families import FAMILIES
from vgpo_lite.models.quantization import stored_quantization

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

TINY = "tiny"
TINY_FOLDER = Path(__file__).parent / "tiny"
_KEPT_SUFFIXES = (".json", ".safetensors", ".txt", ".jinja", ".model")
_PICKLED_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
_SAMPLES, _SAMPLE_BYTES = 32, 65_536  # pieces of a file of weights that its fingerprint reads
_UNREACHABLE = (httpx.TransportError, OfflineModeIsEnabled)


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """A model on this disk, checked as far as its JSON tells.

    Attributes:
        model_id: What it is called in records: the hub id, `tiny`, or the absolute path of a local folder.
        folder: Where its files lie.
        revision: The commit on the hub; None for files that come from no hub.
        config: The content of config.json.
    """

    model_id: str
    folder: Path
    revision: str | None
    config: Mapping[str, Any]


def model_files(name: str, *, revision: str | None = None, weights: bool = True) -> ModelFiles:
    """Find a model's files, fetching them if they are not here yet.

    Args:
        name: `tiny`, a local folder, or a hub id.
        revision: Branch, tag or commit on the hub; None: the newest.
        weights: Whether the weights are wanted; without them a few megabytes are fetched instead of gigabytes.

    Raises:
        ModelError: There is no such model, the hub refuses or cannot be reached, or it is no model this project trains.
        StorageError: The download does not fit on the disk.
    """
    folder = Path(name).expanduser()
    if revision is not None and (name == TINY or folder.is_dir()):
        raise ModelError(f"revision is {revision!r}, but {name} comes from no hub. Unset revision.")
    if name == TINY:
        return _local_files(TINY_FOLDER, model_id=TINY, weights=weights)
    if folder.is_dir():
        return _local_files(folder, model_id=str(folder.resolve()), weights=weights)
    if "/" not in name:
        raise _no_such(name)
    try:
        return _hub_files(name, revision, weights=weights)
    except (*_UNREACHABLE, LocalEntryNotFoundError) as error:
        return _cached_files(name, revision, weights=weights, reason=str(error) or type(error).__name__)
    except HfHubHTTPError as error:
        if error.response.status_code >= 500:
            return _cached_files(name, revision, weights=weights, reason=f"it answers {error.response.status_code}")
        raise _refusal(name, revision, error) from error
    except HFValidationError as error:
        raise _no_such(name) from error
    except OSError as error:
        raise StorageError(
            f"{name} cannot be fetched into {constants.HF_HUB_CACHE}: {error.strerror or error}. Free space "
            "there, or set HF_HOME to another folder."
        ) from error


def _local_files(folder: Path, *, model_id: str, weights: bool, revision: str | None = None) -> ModelFiles:
    """A model's folder, after looking at what is in it."""
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} has no config.json; expected the folder of a transformers model")
    config = read_config(folder / "config.json", model_id)
    if not weights:
        return ModelFiles(model_id=model_id, folder=folder, revision=revision, config=config)
    _check_files(model_id, [path.name for path in folder.iterdir()])
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = set(json.loads(index.read_bytes())["weight_map"].values())
            missing = sorted(shard for shard in shards if not (folder / shard).is_file())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{index} is damaged: {error!r}. Fetch or copy the model again.") from error
        if missing:
            raise ModelError(f"{folder} is incomplete: {', '.join(missing)} is missing. Fetch or copy it again.")
    return ModelFiles(model_id=model_id, folder=folder, revision=revision, config=config)


def local_fingerprint(model_id: str) -> str | None:
    """Names the content of a model that comes from no hub: its configuration, and of its weights sizes and samples.

    Whatever is trained changes nearly every weight, so that pieces spread over each file tell; all of them would take
    minutes. None where there is no such folder.
    """
    folder = TINY_FOLDER if model_id == TINY else Path(model_id)
    if not (folder / "config.json").is_file():
        return None
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for file in sorted(folder.glob("*.safetensors")):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with file.open("rb") as stream:
            for piece in range(_SAMPLES + 1):
                stream.seek(max(0, size - _SAMPLE_BYTES) * piece // _SAMPLES)
                digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:32]


def read_config(path: Path, model_id: str) -> Mapping[str, Any]:
    """The content of a config.json, of a family and in a number format this project trains.

    Raises:
        ModelError: It is damaged, of another architecture, or quantized in another way than NF4.
    """
    try:
        config = json.loads(path.read_bytes())
        model_type = config["model_type"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(f"{model_id}: {path.name} is damaged or names no model_type: {error!r}") from error
    if not isinstance(model_type, str):
        raise ModelError(f"{model_id}: {path.name} gives {model_type!r} as its model_type; expected a name")
    if model_type not in FAMILIES:
        rather = nearest(model_type, FAMILIES)
        raise ModelError(
            f"{model_id} is a {model_type!r} model, which is not supported; expected one of "
            f"{', '.join(sorted(FAMILIES))}." + (f" The nearest is {rather}." if rather else "")
        )
    stored_quantization(config, model_id)
    return config


def _check_files(model_id: str, names: Sequence[str]) -> None:
    """Raise a ModelError unless there are weights in safetensors."""
    if any(name.endswith(".safetensors") for name in names):
        return
    pickled = sorted(name for name in names if name.endswith(_PICKLED_SUFFIXES))
    if pickled:
        raise ModelError(
            f"{model_id} has its weights in {pickled[0]}, a pickle that can run code when it is read; expected "
            "safetensors. Convert it, or choose a repository that has them."
        )
    raise ModelError(f"{model_id} has no weights: expected files that end in .safetensors")


def _hub_files(name: str, revision: str | None, *, weights: bool) -> ModelFiles:
    information = HfApi().model_info(
        name, revision=revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT
    )
    commit = str(information.sha)
    sizes = {
        sibling.rfilename: sibling.size or 0
        for sibling in information.siblings or ()
        if "/" not in sibling.rfilename and sibling.rfilename.endswith((*_KEPT_SUFFIXES, *_PICKLED_SUFFIXES))
    }
    if "config.json" not in sizes:
        raise ModelError(f"{name} has no config.json on the hub; expected a transformers model")
    read_config(Path(hf_hub_download(name, "config.json", revision=commit)), name)
    _check_files(name, list(sizes))
    kept = _KEPT_SUFFIXES if weights else tuple(suffix for suffix in _KEPT_SUFFIXES if suffix != ".safetensors")
    wanted = {file: size for file, size in sizes.items() if file.endswith(kept)}
    _check_space(name, commit, wanted)
    # The branch's name, not its commit: the cache then knows it without the network.
    folder = Path(snapshot_download(name, revision=revision, allow_patterns=list(wanted)))
    return _local_files(folder, model_id=name, revision=folder.name, weights=weights)


def _check_space(name: str, commit: str, sizes: Mapping[str, int]) -> None:
    """Raise a StorageError where what is still to be fetched is more than the cache's disk has free."""
    missing = sum(
        size for file, size in sizes.items() if not isinstance(try_to_load_from_cache(name, file, revision=commit), str)
    )
    cache = Path(constants.HF_HUB_CACHE)
    existing = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if missing > free:
        raise StorageError(
            f"{name} needs {missing / 1e9:.1f} GB more on the disk of {cache}, which has {free / 1e9:.1f} GB free. "
            "Free space there, or set HF_HOME to a folder on a larger disk."
        )


def _cached_files(name: str, revision: str | None, *, weights: bool, reason: str) -> ModelFiles:
    """The snapshot an earlier run fetched, for when the hub cannot be asked."""
    try:
        folder = Path(snapshot_download(name, revision=revision, local_files_only=True, allow_patterns=["config.json"]))
    except LocalEntryNotFoundError as error:
        raise ModelError(
            f"{name} is not on this disk and {constants.ENDPOINT} cannot be reached ({reason}). Connect, or fetch it "
            f"where there is a network: hf download {name}"
        ) from error
    return _local_files(folder, model_id=name, revision=folder.name, weights=weights)


def _refusal(name: str, revision: str | None, error: HfHubHTTPError) -> ModelError:
    """What the hub's refusal means for the user."""
    page = f"{constants.ENDPOINT}/{name}"
    has_token = get_token() is not None
    if isinstance(error, GatedRepoError):
        if has_token:
            return ModelError(f"your token may not read {name}: accept its terms at {page} with that token's account.")
        return ModelError(f"{name} is gated: accept its terms at {page}, then log in with `hf auth login`.")
    if isinstance(error, RevisionNotFoundError):
        return ModelError(f"{name} has no revision {revision!r}; its branches and tags are listed at {page}/tree/main")
    if isinstance(error, RepositoryNotFoundError):
        private = "your token may not see it" if has_token else "it is private: then log in with `hf auth login`"
        return ModelError(f"the hub has no model {name}, or {private}.{_meant(name)}")
    if isinstance(error, EntryNotFoundError):
        return ModelError(f"{name} changed while it was fetched: {error}. Start again.")
    if error.response.status_code == 401:
        return ModelError("the hub does not know your token. Log in again with `hf auth login`, or unset HF_TOKEN.")
    return ModelError(f"the hub refuses {name} with status {error.response.status_code}: {error}")


def _no_such(name: str) -> ModelError:
    return ModelError(f"there is no model {name!r}: it is no preset, folder or hub id.{_meant(name)}")


def _meant(name: str) -> str:
    """A sentence with the preset whose name or hub id is nearest, or nothing."""
    ids = {preset: _preset_id(preset) for preset in recipe_names("models")}
    rather = nearest(name, [*ids, *ids.values()])
    return f" Did you mean {rather}?" if rather else f" Presets: {', '.join(ids)}."


def _preset_id(preset: str) -> str:
    path = recipe_path("models", preset)
    return preset if path is None else str(yaml.safe_load(path.read_text(encoding="utf-8")).get("model_id", preset))
