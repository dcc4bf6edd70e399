"""The parts that the cards of an adapter and of a merged model share, as markdown."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from vgpo_lite.models.hub import TINY
from vgpo_lite.units import percent

if TYPE_CHECKING:
    from vgpo_lite.card.record import TrainingRecord
    from vgpo_lite.data_types import Accuracy

_BIBTEX = """\
@inproceedings{wang2026vgpo,
  title         = {Visually-Guided Policy Optimization for Multimodal Reasoning},
  author        = {Wang, Zengbin and Xiong, Feng and Lin, Liang and Hu, Xuecai and Wang, Yong and Wang, Yanlin and
                   Zhang, Man and Chu, Xiangxiang},
  booktitle     = {Annual Meeting of the Association for Computational Linguistics (ACL)},
  year          = {2026},
  eprint        = {2604.09349},
  archivePrefix = {arXiv},
  url           = {https://arxiv.org/abs/2604.09349}
}"""

_ASK = """\
image = Image.new("RGB", (224, 224), "white")  # or yours: Image.open("picture.png").convert("RGB")
{scaling}text = {text}
messages = [{{"role": "user", "content": [{{"type": "image", "image": image}}, {{"type": "text", "text": text}}]}}]
inputs = processor.apply_chat_template(
    messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
).to(model.device)
output = model.generate(**inputs, max_new_tokens={tokens}, do_sample=False)
print(processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))"""

_SCALING = """\
# As in training: an image whose canvas holds more than {most:,} pixels is scaled down to one that does not
size, canvases = (image.height, image.width), processor.image_processor.image_grid_pinpoints
if prod(select_best_resolution(size, canvases)) > {most}:
    high, wide = select_best_resolution(size, [canvas for canvas in canvases if prod(canvas) <= {most}])
    scale = min(high / image.height, wide / image.width)
    fitting = min(ceil(image.width * scale), wide), min(ceil(image.height * scale), high)
    image = image.resize(fitting, Image.Resampling.BICUBIC)
"""

_SCALING_IMPORT = "\nfrom transformers.image_processing_utils import select_best_resolution"

_ADAPTER = """\
{first}from peft import PeftModel
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor{last}

source = {source}  # the folder with the adapter, or its name on the hub
base = {base}
model = AutoModelForImageTextToText.from_pretrained(base, {revision}dtype="auto", device_map="auto")
model = PeftModel.from_pretrained(model, source)
processor = AutoProcessor.from_pretrained(base{processor_options})
"""

_MERGED = """\
{first}from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor{last}

source = {source}  # this folder, or its name on the hub
model = AutoModelForImageTextToText.from_pretrained(source, dtype="auto", device_map="auto")
processor = AutoProcessor.from_pretrained(source{processor_options})
"""

_DEFAULT_TEXT, _DEFAULT_TOKENS = "What does the picture show?", 256


def front_matter(record: TrainingRecord | None, *, library: Literal["peft", "transformers"], base: str | None) -> str:
    """What the hub reads of a card.

    Args:
        record: What is told of the training.
        library: What loads the folder.
        base: Hub id of the base model; None for one that is on no hub.
    """
    lines = [f"library_name: {library}", "pipeline_tag: image-text-to-text"]
    if base is not None:
        relation = {"peft": "adapter", "transformers": "finetune"}[library]
        lines += [f"base_model: {base}", f"base_model_relation: {relation}"]
    if record is not None and record.dataset is not None:
        lines += ["datasets:", f"- {record.dataset}"]
    lines += ["tags:", "- vgpo-lite", "- vgpo", "- grpo", "- reinforcement-learning"]
    if library == "peft":
        lines.append("- lora")
    return "\n".join(["---", *lines, "---"])


def results(record: TrainingRecord) -> str:
    """Held-out accuracy before and after, with 95 % intervals."""
    before, after = record.before, record.after
    if before is None and after is None:
        return "## Accuracy\n\nNot measured (`eval.limit` was 0, or no row was held out)."
    rows = [
        f"| {name} | {accuracy.right} of {accuracy.total} | {percent(accuracy.share)} | {_interval(accuracy)} |"
        for name, accuracy in (("before", before), ("after", after))
        if accuracy is not None
    ]
    if before is not None and after is not None:
        low, high = change_interval(before, after)
        change = f"{100 * (after.share - before.share):+.1f} points"
        rows.append(f"| change | | {change} | {100 * low:+.1f} to {100 * high:+.1f} points |")
    table = "\n".join(["| held-out accuracy | right | share | 95 % interval |", "|---|---|---|---|", *rows])
    return (
        f"## Accuracy\n\n{table}\n\nGreedy answers to rows of the same data set that did not train, graded as in "
        "training. Intervals are Wilson's; the change's is Newcombe's, as if before and after were different rows."
    )


def change_interval(before: Accuracy, after: Accuracy) -> tuple[float, float]:
    """95 % interval of the difference of two shares, in [-1, 1], from their Wilson intervals.

    Newcombe 1998, method 10, which takes the two as independent. Measured on the same rows they rise and fall
    together, so that the true interval is narrower.
    """
    change = after.share - before.share
    low = math.hypot(after.share - after.low, before.high - before.share)
    high = math.hypot(after.high - after.share, before.share - before.low)
    return change - low, change + high


def cost_and_recipe(record: TrainingRecord) -> str:
    """What was trained with what, at what cost, and the settings that repeat it."""
    table = "\n".join(["| | |", "|---|---|", *(f"| {name} | {_cell(words)} |" for name, words in record.facts.items())])
    about = (
        "Every setting that was set or is not vgpo-lite's default; `vgpo-lite train --recipe recipe.yaml` repeats the "
        "run. Files are named without their folders."
    )
    parts = [
        "## Training", table, "The base model's licence applies.", "## Recipe", about, f"```yaml\n{record.recipe}```"
    ]  # fmt: skip
    return "\n\n".join(parts)


def snippet(record: TrainingRecord | None, *, kind: Literal["adapter", "merged"], source: str) -> str:
    """A program that loads the folder and asks it about a picture the way it was asked in training.

    Args:
        record: What is told of the training.
        kind: Whether the folder holds an adapter or a whole model.
        source: Path of the folder from where the card lies, or its name on the hub.
    """
    text, tokens = (_DEFAULT_TEXT, _DEFAULT_TOKENS) if record is None else (record.example, record.max_new_tokens)
    told, most = ({}, None) if record is None else (record.image_options, record.canvas_pixels)
    scaling = "" if most is None else _SCALING.format(most=most)
    ask = _ASK.format(text=_literal(text), tokens=tokens, scaling=scaling)
    first, last = ("", "") if most is None else ("from math import ceil, prod\n\n", _SCALING_IMPORT)
    pixels = "".join(f", {name}={_literal(value)}" for name, value in told.items())
    if kind == "merged" or record is None:
        load = _MERGED.format(source=_literal(source), processor_options=pixels, first=first, last=last)
        return f"```python\n{load}\n{ask}\n```"
    is_tiny = record.model == TINY
    load = _ADAPTER.format(
        source=_literal(source),
        first=first,
        last=last + ("\nfrom vgpo_lite.models.tiny import TINY_PATH" if is_tiny else ""),
        base="TINY_PATH" if is_tiny else _literal(record.model),
        revision=f'revision="{record.revision}", ' if record.revision else "",
        processor_options=(f', revision="{record.revision}"' if record.revision else "") + pixels,
    )
    return f"```python\n{load}\n{ask}\n```"


def citation() -> str:
    """Whom to cite for the method."""
    return f"## Citation\n\nThe method; this program is written from its equations.\n\n```bibtex\n{_BIBTEX}\n```"


def _literal(value: Any) -> str:
    """A value that came from JSON, as a program writes it.

    >>> print(_literal({"size": {"longest_edge": 512}, "do_pan_and_scan": False, "mode": None}))
    {"size": {"longest_edge": 512}, "do_pan_and_scan": False, "mode": None}
    """
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_literal(name)}: {_literal(each)}" for name, each in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def _cell(words: str) -> str:
    return words.replace("|", "\\|").replace("\n", " ")


def _interval(accuracy: Accuracy) -> str:
    return f"{100 * accuracy.low:.1f} to {percent(accuracy.high)}"
