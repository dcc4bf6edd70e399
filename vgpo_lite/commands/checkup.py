"""What `doctor` looks at: one function per subject, each telling what it found and what to do."""

from __future__ import annotations

import os
import platform
import shutil
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from vgpo_lite import __version__
from vgpo_lite.errors import ConfigError
from vgpo_lite.units import memory

SMALLEST_MODEL_BYTES = 5e9
"""What qwen2-vl-2b takes on the disk: 2.2 billion weights of two bytes and their processor."""


class Verdict(Enum):
    """How a subject is."""

    GOOD = "ok"
    LIMITED = "note"
    WRONG = "WRONG"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What was found about one subject.

    Attributes:
        subject: What was looked at.
        verdict: Whether it is good, limits what can be done, or keeps training from running.
        found: What was found.
        advice: What to do; empty where nothing needs doing.
    """

    subject: str
    verdict: Verdict
    found: str
    advice: str = ""

    def as_dict(self) -> dict[str, str]:
        """The finding as plain text, for JSON."""
        return {"subject": self.subject, "verdict": self.verdict.value, "found": self.found, "advice": self.advice}


def findings() -> Iterator[Finding]:
    """Everything, quick subjects first; a subject that needs a broken library is told as wrong."""
    yield _python()
    libraries = list(_libraries())
    yield from libraries
    yield _recipes()
    yield _host_memory()
    yield _working_folder()
    if all(finding.verdict is not Verdict.WRONG for finding in libraries):
        yield _graphics_card()
        yield _four_bits()
        yield _built_in_model()
        yield from _hub()


def _python() -> Finding:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}, vgpo-lite {__version__}"
    return Finding(subject="Python", verdict=Verdict.GOOD, found=found)


def _libraries() -> Iterator[Finding]:
    """One line for all libraries that are as required, and one for each that is not."""
    good = []
    for requirement in _requirements():
        name = requirement.name
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            advice = f"pip install '{requirement}'"
            yield Finding(subject=name, verdict=Verdict.WRONG, found="is not installed", advice=advice)
            continue
        if requirement.specifier.contains(version, prereleases=True):
            good.append(f"{name} {version}")
        else:
            found = f"{version}, but {requirement.specifier} is needed"
            yield Finding(subject=name, verdict=Verdict.WRONG, found=found, advice=f"pip install '{requirement}'")
    yield Finding(subject="libraries", verdict=Verdict.GOOD, found=", ".join(good))


def _requirements() -> list[Requirement]:
    """What the package asks for, from its metadata or, in a checkout that is not installed, from pyproject.toml."""
    try:
        lines = metadata.requires("vgpo-lite") or []
    except metadata.PackageNotFoundError:
        project = Path(__file__).parents[2] / "pyproject.toml"
        lines = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["dependencies"]
    requirements = [Requirement(line) for line in lines]
    return [each for each in requirements if each.marker is None or each.marker.evaluate({"extra": ""})]


def _recipes() -> Finding:
    from vgpo_lite.config.load import check_recipe
    from vgpo_lite.config.recipes import KINDS, recipe_names, recipe_root

    try:
        root = recipe_root()
        for kind in KINDS:
            for name in recipe_names(kind):
                check_recipe(root / kind / f"{name}.yaml", f"{kind}/{name}")
    except ConfigError as error:
        return Finding(subject="recipes", verdict=Verdict.WRONG, found=str(error), advice="install vgpo-lite again")
    counts = ", ".join(f"{len(recipe_names(kind))} {kind}" for kind in KINDS if recipe_names(kind))
    return Finding(subject="recipes", verdict=Verdict.GOOD, found=f"{counts} in {root}")


def _host_memory() -> Finding:
    import psutil

    state = psutil.virtual_memory()
    found = f"{memory(state.available)} free of {memory(state.total)}, {os.cpu_count()} cores"
    return Finding(subject="memory", verdict=Verdict.GOOD, found=found)


def _working_folder() -> Finding:
    here = Path.cwd()
    if not os.access(here, os.W_OK):
        advice = "change to a folder you may write to, or give --output"
        return Finding(subject="run directory", verdict=Verdict.LIMITED, found=f"{here} is read-only", advice=advice)
    free = memory(shutil.disk_usage(here).free)
    return Finding(subject="run directory", verdict=Verdict.GOOD, found=f"{free} free under {here}")


def _graphics_card() -> Finding:
    import torch

    if not torch.cuda.is_available():
        found = f"torch {torch.__version__} sees no GPU: models run on the CPU"
        advice = "enough for `vgpo-lite train` with the built-in model. With an NVIDIA card, `nvidia-smi` must list it"
        return Finding(subject="GPU", verdict=Verdict.LIMITED, found=found, advice=advice)
    card = torch.cuda.get_device_properties(0)
    free, total = torch.cuda.mem_get_info(0)
    has_bf16 = card.major >= 8  # Ampere: the first with bfloat16 arithmetic
    formats = "bfloat16" if has_bf16 else "float16 (the card has no bfloat16)"
    found = f"{card.name}, {memory(free)} free of {memory(total)}, {formats}"
    busy = free < total / 2
    advice = "another process holds more than half of the card; `nvidia-smi` lists it" if busy else ""
    return Finding(subject="GPU", verdict=Verdict.LIMITED if busy else Verdict.GOOD, found=found, advice=advice)


def _four_bits() -> Finding:
    import torch

    from vgpo_lite.models.nf4_trial import LARGEST_ERROR, nf4_error

    device = "cuda" if torch.cuda.is_available() else "cpu"
    advice = "reinstall bitsandbytes for this torch; until then --set quantization=none"
    try:
        error = nf4_error(device)
    except (RuntimeError, NotImplementedError, AttributeError, OSError) as failure:
        reason = str(failure).partition("\n")[0]
        return Finding(subject="4-bit arithmetic", verdict=Verdict.WRONG, found=f"fails: {reason}", advice=advice)
    if not error < LARGEST_ERROR:
        found = f"is off by {error:.2f} on {device}; expected under {LARGEST_ERROR}"
        return Finding(subject="4-bit arithmetic", verdict=Verdict.WRONG, found=found, advice=advice)
    found = f"NF4 works on {device}: relative error {error:.3f}, gradients flow"
    return Finding(subject="4-bit arithmetic", verdict=Verdict.GOOD, found=found)


def _built_in_model() -> Finding:
    from vgpo_lite.models.hub import TINY_FOLDER

    missing = [name for name in ("config.json", "model.safetensors") if not (TINY_FOLDER / name).is_file()]
    if missing:
        found = f"{' and '.join(missing)} missing in {TINY_FOLDER}"
        return Finding(subject="built-in model", verdict=Verdict.WRONG, found=found, advice="install vgpo-lite again")
    size = memory(sum(path.stat().st_size for path in TINY_FOLDER.rglob("*") if path.is_file()))
    return Finding(subject="built-in model", verdict=Verdict.GOOD, found=f"tiny, {size}")


def _hub() -> Iterator[Finding]:
    from huggingface_hub import constants, get_token

    cache = Path(constants.HF_HUB_CACHE)
    place = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free = shutil.disk_usage(place).free
    enough = free > SMALLEST_MODEL_BYTES
    advice = "" if enough else "qwen2-vl-2b alone takes 5 GB: free space, or set HF_HOME to a folder on a larger disk"
    verdict = Verdict.GOOD if enough else Verdict.LIMITED
    yield Finding(subject="model cache", verdict=verdict, found=f"{memory(free)} free for {cache}", advice=advice)
    token = "a token is set" if get_token() else "no token, which only gated models need (`hf auth login`)"
    if constants.is_offline_mode():
        advice = "only models in the cache can be used; unset HF_HUB_OFFLINE to fetch others"
        yield Finding(subject="hub", verdict=Verdict.LIMITED, found=f"offline mode, {token}", advice=advice)
    else:
        yield Finding(subject="hub", verdict=Verdict.GOOD, found=f"{constants.ENDPOINT}, {token}")
