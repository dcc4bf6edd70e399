"""The stand-in hub answers the ordinary clients as the hub does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from datasets import Dataset, load_dataset
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.hub.data import GEOMETRY3K, GEOQA, MATHVISTA, picture, write_dataset
from tests.hub.gemma import GEMMA3
from tests.hub.models import SMALLEST_OF_EACH_FAMILY, VOCABULARY, token_id, write_model

if TYPE_CHECKING:
    from tests.hub.server import HubServer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    Dataset.from_dict({"problem": ["1 + 1", "2 + 2"], "answer": ["2", "4"]}).to_parquet(
        tmp_path / "data" / "train-00000-of-00001.parquet"
    )
    (tmp_path / "README.md").write_text("a card\n")
    return tmp_path


def test_a_published_folder_loads_as_a_data_set(hub: HubServer, folder: Path) -> None:
    hub.publish("datasets", "stand-in/sums", folder)
    rows = load_dataset("stand-in/sums", split="train")
    assert list(rows) == [{"problem": "1 + 1", "answer": "2"}, {"problem": "2 + 2", "answer": "4"}]


def test_a_snapshot_holds_the_published_files_at_the_commit_the_hub_names(hub: HubServer, folder: Path) -> None:
    commit = hub.publish("models", "stand-in/files", folder)
    information = HfApi().model_info("stand-in/files", files_metadata=True)
    snapshot = Path(snapshot_download("stand-in/files"))
    assert information.sha == commit == snapshot.name
    sizes = {sibling.rfilename: sibling.size for sibling in information.siblings or []}
    for name, size in sizes.items():
        assert (snapshot / name).stat().st_size == size
        assert (snapshot / name).read_bytes() == (folder / name).read_bytes()


def test_an_older_revision_stays_readable_beside_a_newer_one(hub: HubServer, folder: Path, tmp_path: Path) -> None:
    old = hub.publish("models", "stand-in/two", folder, revision="v1")
    newer = tmp_path / "newer"
    newer.mkdir()
    (newer / "README.md").write_text("a newer card\n")
    new = hub.publish("models", "stand-in/two", newer)
    assert old != new
    assert Path(hf_hub_download("stand-in/two", "README.md", revision="v1")).read_text() == "a card\n"
    assert Path(hf_hub_download("stand-in/two", "README.md")).read_text() == "a newer card\n"


def test_refusals_reach_the_client_as_the_errors_of_the_hub(hub: HubServer, folder: Path) -> None:
    hub.publish("models", "stand-in/gated", folder)
    hub.restrict("models", "stand-in/gated", "gated", ("hf_reader",))
    with pytest.raises(RepositoryNotFoundError):
        HfApi().model_info("stand-in/none")
    with pytest.raises(GatedRepoError):
        hf_hub_download("stand-in/gated", "README.md")
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download("stand-in/gated", "README.md", revision="v9", token="hf_reader")
    with pytest.raises(RemoteEntryNotFoundError):
        hf_hub_download("stand-in/gated", "none.md", token="hf_reader")
    assert Path(hf_hub_download("stand-in/gated", "README.md", token="hf_reader")).read_text() == "a card\n"


@pytest.mark.parametrize("name", [GEOMETRY3K, GEOQA, MATHVISTA])
def test_the_small_data_sets_load_under_their_real_names_with_their_columns(
    hub: HubServer, tmp_path: Path, name: str
) -> None:
    hub.publish("datasets", name, write_dataset(tmp_path / "data-set", name, rows=3))
    splits = load_dataset(name)
    row = next(iter(splits.values()))[2]
    image = {GEOMETRY3K: "images", GEOQA: "image", MATHVISTA: "decoded_image"}[name]
    shown = row[image][0] if isinstance(row[image], list) else row[image]
    red = sum(1 for pixel in shown.get_flattened_data() if pixel == (255, 0, 0))
    assert red / (13 * 13) == 3  # each square is 13 pixels wide; the third row of a split shows three
    assert (row.get("answer") or row.get("solution")) in ("3", "<answer> 3 </answer>")


@pytest.mark.parametrize("name", SMALLEST_OF_EACH_FAMILY)
def test_the_small_models_load_under_their_real_names_and_answer_about_an_image(
    hub: HubServer, tmp_path: Path, name: str
) -> None:
    hub.publish("models", name, write_model(tmp_path / "model", name))
    model = AutoModelForImageTextToText.from_pretrained(name)
    processor = AutoProcessor.from_pretrained(name)
    content = [{"type": "image", "image": picture(2)}, {"type": "text", "text": "How many?"}]
    encoded = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
    )  # fmt: skip
    text = processor.tokenizer.decode(encoded["input_ids"][0])
    assert text.partition("How many?")[2] in (
        "<|im_end|>\n<|im_start|>assistant\n",
        "<end_of_utterance>\nAssistant:",
        "<|im_end|><|im_start|>assistant\n",
        "<end_of_turn>\n<start_of_turn>model\n",
    )
    image_tokens = int((encoded["input_ids"] == model.config.image_token_id).sum())
    if "image_grid_thw" in encoded:
        assert image_tokens == encoded["image_grid_thw"].prod() // 4
        assert model.generation_config.eos_token_id == [token_id("<|im_end|>"), token_id("<|endoftext|>")]
    elif "image_sizes" in encoded:
        [features] = model.get_image_features(
            encoded["pixel_values"], encoded["image_sizes"], batch_num_images=encoded["batch_num_images"]
        ).pooler_output
        assert image_tokens == len(features) > 4  # the whole image, and more of it
    else:
        tiles = encoded["pixel_values"].shape[:-3].numel()
        each = getattr(processor, "image_seq_len", None) or processor.image_seq_length
        assert image_tokens == tiles * each > 0
    assert model(**encoded).logits.shape[-1] == (640 if name == GEMMA3 else VOCABULARY)
