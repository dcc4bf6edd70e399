"""Adapters and merged models go to the hub with their cards, and nothing else goes."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from vgpo_lite.card import TrainingRecord, adapter_companions
from vgpo_lite.commands import main
from vgpo_lite.config.schema import RunConfig
from vgpo_lite.errors import CheckpointError, ConfigError, MergeError, ModelError, PushError
from vgpo_lite.export import merge
from vgpo_lite.export.pushing import check_name, push, upload_of
from vgpo_lite.models import load_policy
from vgpo_lite.models.lora import place_adapter

if TYPE_CHECKING:
    from tests.hub.server import HubServer

TOKEN = "hf_me"
RECORD = TrainingRecord(
    model="tiny", revision=None, dataset=None, title="tiny trained on shapes", before=None, after=None,
    facts={"steps": "2 updates in 2 steps"}, recipe="model: tiny\ndataset: shapes\n", example="What is there?",
    max_new_tokens=3, image_options={"min_pixels": 3136, "max_pixels": 12_544}, quantization="none",
)  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that has ended, `run`, and its merged model, `merged`."""
    folder = tmp_path_factory.mktemp("trained")
    policy = load_policy(RunConfig(model="tiny", quantization="none"))
    with torch.no_grad():
        for name, parameter in policy.adapters().items():
            if ".lora_B." in name:
                parameter.fill_(0.01)
    (folder / "run" / "checkpoints" / "step-000002").mkdir(parents=True)
    (folder / "run" / "checkpoints" / "step-000002" / "optimizer.safetensors").write_bytes(b"moments")
    place_adapter(policy, folder / "run" / "adapter", adapter_companions(RECORD))
    (folder / "run" / "status.json").write_text(json.dumps({"state": "finished", "updated_steps": 2}))
    merge(folder / "run", folder / "merged", verify=False)
    return folder


@pytest.fixture
def place(trained: Path, tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same to change, and a token that may write as `me`."""
    hub.uploads.allow(hub, TOKEN, "me")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    shutil.copytree(trained, tmp_path / "out")
    return tmp_path / "out"


def pushed(source: Path, repository: str, *, public: bool = False, overwrite: bool = False) -> str:
    upload = upload_of(source, repository)
    return push(upload, repository, public=public, overwrite=overwrite, message="Upload")


def files_of(hub: HubServer, repository: str) -> dict[str, bytes]:
    entries = hub.repositories["models", repository].snapshots["main"].entries
    return {name: entry.source.read_bytes() for name, entry in entries.items() if name != ".gitattributes"}


def program(card: bytes) -> str:
    [block] = re.findall(r"^```python\n(.*?)^```$", card.decode(), flags=re.DOTALL | re.MULTILINE)
    return block


@pytest.mark.parametrize(
    ("source", "kept"), [("run", "run/adapter"), ("run/adapter", "run/adapter"), ("merged", "merged")]
)
def test_what_arrives_is_the_export_with_a_card_whose_program_loads_it_from_there(
    hub: HubServer, place: Path, capsys: pytest.CaptureFixture, source: str, kept: str
) -> None:
    name = f"me/arrives-{source.replace('/', '-')}"
    address = pushed(place / source, name)
    repository = hub.repositories["models", name]
    assert repository.access == "private"
    assert address == f"{hub.endpoint}/{name}/commit/{repository.snapshots['main'].commit}"
    arrived = files_of(hub, name)
    here = {path.name: path.read_bytes() for path in (place / kept).iterdir()}
    assert here.pop("README.md") != arrived["README.md"]
    card = arrived.pop("README.md")
    assert arrived == here
    exec(compile(program(card), "README.md", "exec"), {})  # the card's own words, which fetch from the hub
    assert f'source = "{name}"' in card.decode()
    assert capsys.readouterr().out.strip()
    assert f"{name}/{'model' if kept == 'merged' else 'adapter_model'}.safetensors" in hub.downloads


def test_a_dry_run_shows_names_sizes_and_visibility_and_asks_nobody(
    hub: HubServer, place: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    (place / "merged" / "optimizer.pt").write_bytes(b"moments")
    asked = len(hub.requests)
    for source, shown in (("run", "the adapter in"), ("merged", "the model in")):
        with pytest.raises(SystemExit) as left:
            main(["push", str(place / source), "--to", "me/dry", "--dry-run"])
        assert left.value.code in (0, None)
        printed = capsys.readouterr().out
        assert f"would upload {shown}" in printed
        assert " to me/dry (private):" in printed
        assert re.search(r"^  README\.md +[\d.]+ KB$", printed, flags=re.MULTILINE)
        assert ("stays here: optimizer.pt" in printed) == (source == "merged")
        size = sum(upload_of(place / source, "me/dry").sizes.values())
        assert re.search(
            rf"^  [58] files +{size / (1e6 if size > 1e6 else 1e3):.1f} [KM]B$", printed, flags=re.MULTILINE
        )
    assert len(hub.requests) == asked
    assert ("models", "me/dry") not in hub.repositories


def test_public_is_public(hub: HubServer, place: Path) -> None:
    pushed(place / "run", "me/public", public=True)
    assert hub.repositories["models", "me/public"].access == "public"


def test_a_taken_name_is_refused_and_overwritten_only_on_demand_without_leaving_old_weights(
    hub: HubServer, place: Path
) -> None:
    pushed(place / "run", "me/taken")
    before = files_of(hub, "me/taken")
    with pytest.raises(PushError, match=r"me/taken exists and holds 6 files\. .* --overwrite"):
        pushed(place / "merged", "me/taken")
    assert files_of(hub, "me/taken") == before
    pushed(place / "merged", "me/taken", overwrite=True, public=True)
    after = files_of(hub, "me/taken")
    assert "model.safetensors" in after
    assert "adapter_model.safetensors" not in after
    assert hub.repositories["models", "me/taken"].access == "private"


def test_a_push_that_broke_off_is_finished_by_the_same_command(hub: HubServer, place: Path) -> None:
    hub.uploads.fails["commit"] = 1
    with pytest.raises(PushError, match=r"the hub answers 500 \(something went wrong here\)\. Push again later"):
        pushed(place / "run", "me/again")
    assert files_of(hub, "me/again") == {}
    pushed(place / "run", "me/again")
    assert len(files_of(hub, "me/again")) == 5


@pytest.mark.parametrize(
    ("token", "repository", "told"),
    [
        (None, "me/model", "there is no token. Log in with `hf auth login`"),
        ("hf_unknown", "me/model", "the hub does not know your token"),
        ("hf_reader", "me/model", "your token may not write as me .*the rights"),
        (TOKEN, "you/model", "your token may not write as you .*the rights"),
    ],
)
def test_who_may_not_write_is_told_why(
    hub: HubServer, place: Path, monkeypatch: pytest.MonkeyPatch, token: str | None, repository: str, told: str
) -> None:
    hub.tokens.add("hf_reader")
    monkeypatch.delenv("HF_TOKEN")
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(PushError, match=told):
        pushed(place / "run", repository)
    assert ("models", repository) not in hub.repositories


def test_a_hub_out_of_reach_is_told(hub: HubServer, place: Path) -> None:
    with (
        hub.unreachable(),
        pytest.raises(PushError, match=r"http://127.* cannot be reached .* Connect, and push again"),
    ):
        pushed(place / "run", "me/unreachable")


@pytest.mark.parametrize("name", ["me", "me/a b", "me/model/more", "", "me/..", "-me/model"])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="--to is "):
        check_name(name)


def spoiled(place: Path, how: str) -> Path:
    """The run or the merged folder after something happened to it."""
    run, merged = place / "run", place / "merged"
    config = run / "adapter" / "adapter_config.json"
    if how == "unfinished":
        shutil.rmtree(run / "adapter")
        (run / "status.json").write_text(json.dumps({"state": "interrupted", "updated_steps": 1}))
    elif how == "local base":
        told = json.loads(config.read_text()) | {"base_model_name_or_path": "/srv/models/qwen"}
        config.write_text(json.dumps(told))
    elif how == "home in card":
        card = run / "adapter" / "README.md"
        card.write_text(card.read_text() + f"\nSee {Path.home()}/notes.\n")
    elif how == "no card":
        (run / "adapter" / "README.md").unlink()
    elif how == "foreign card":
        (merged / "README.md").write_text("---\nlibrary_name: transformers\n---\n")
    elif how == "no weights":
        (merged / "model.safetensors").unlink()
    elif how == "damaged":
        config.write_text("{")
    return {"checkpoint": run / "checkpoints" / "step-000002", "empty": place}.get(
        how, merged if how in ("foreign card", "no weights") else run
    )


@pytest.mark.parametrize(
    ("how", "kind", "told"),
    [
        ("unfinished", MergeError, "has written no adapter. Finish it first"),
        (
            "local base",
            PushError,
            r"adapter_config\.json: base_model_name_or_path is '/srv/models/qwen'\. .*vgpo-lite merge",
        ),
        ("home in card", PushError, r"README\.md names .*/\. Edit them"),
        ("no card", PushError, r"has no README\.md"),
        ("foreign card", PushError, "is not the card that vgpo-lite writes"),
        ("no weights", ModelError, "has no weights"),
        ("damaged", CheckpointError, "damaged"),
        ("checkpoint", CheckpointError, "holds no adapter"),
        ("empty", CheckpointError, "holds no adapter"),
    ],
)
def test_what_is_no_finished_export_or_names_this_machine_is_refused_before_anything_is_sent(
    hub: HubServer, place: Path, how: str, kind: type[Exception], told: str
) -> None:
    asked = len(hub.requests)
    with pytest.raises(kind, match=told):
        pushed(spoiled(place, how), "me/spoiled")
    assert len(hub.requests) == asked
