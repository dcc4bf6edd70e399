"""Inputs that nobody should have to think of, each with the exit code it must end in and what must be told of it.

A case makes its input in an empty folder and names the command line that meets it. Cases of rows and golds name a data
set instead, which is opened as every command opens it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.datasets.pictures import corner_pixels, encoded, hollow_png, jpeg_of_size, png
from tests.datasets.test_open import GOOD, address
from vgpo_lite.models.hub import TINY_FOLDER

Words = Callable[[Path], Sequence[str]]


@dataclass(frozen=True)
class Case:
    """One bad input.

    Attributes:
        kind: What it is an input of.
        name: What is wrong with it.
        code: The exit code.
        told: Pieces of the message: the value, and what was expected or what to do.
        words: Makes the input in a folder; returns the command line, or for rows and golds the data set.
    """

    kind: str
    name: str
    code: int
    told: tuple[str, ...]
    words: Words


def _cases(kind: str, table: Sequence[tuple[str, int, str | tuple[str, ...], Words]]) -> list[Case]:
    return [
        Case(kind, name, code, (told,) if isinstance(told, str) else told, words) for name, code, told, words in table
    ]


def _line(*words: str) -> Words:
    return lambda folder: words


def _existing_run(folder: Path) -> Sequence[str]:
    (folder / "run" / "adapter").mkdir(parents=True)
    return ("train", "-o", "run")


def _file_for_output(folder: Path) -> Sequence[str]:
    (folder / "notes.txt").write_text("mine")
    return ("train", "-o", "notes.txt/run")


def _copy_into_a_file(folder: Path) -> Sequence[str]:
    (folder / "notes.txt").write_text("mine")
    return ("recipe", "copy", "vgpo", "notes.txt/my.yaml")


def _no_checkpoint(folder: Path) -> Sequence[str]:
    (folder / "empty").mkdir()
    return ("train", "--resume", "empty")


COMMAND_LINES = _cases(
    "command line",
    [
        ("unknown model", 2, ("no model qwen2-vl-2 ", "did you mean qwen2-vl-2b?"), _line("train", "-m", "qwen2-vl-2")),
        ("unknown data set", 2, ("no data set geo3 ", "did you mean geo3k?"), _line("train", "-d", "geo3")),
        ("unknown recipe", 2, ("no run recipe vgop", "did you mean vgpo?"), _line("train", "-r", "vgop")),
        ("unknown setting", 2, ("focus.betta is not", "mean focus.beta?"), _line("train", "--set", "focus.betta=1")),
        (
            "a word for a number",
            2,
            ("learning_rate is 'fast'", "a number"),
            _line("train", "--set", "learning_rate=fast"),
        ),
        ("--set without value", 2, "--set 'learning_rate' has no value", _line("train", "--set", "learning_rate")),
        ("no steps", 2, ("max_steps is 0 (--max-steps)", ">= 1"), _line("train", "--max-steps", "0")),
        ("negative seed", 2, "seed is -1 (--seed)", _line("train", "--seed=-1")),
        ("negative limit", 2, "eval.limit is -1 (--limit)", _line("eval", "--limit=-1")),
        ("unknown tracker", 2, ("'wandbb'", "did you mean wandb?"), _line("train", "--report-to", "wandbb")),
        ("unknown flag", 2, "--maxsteps", _line("train", "--maxsteps", "3")),
        ("unknown command", 2, "'trian'", _line("trian")),
        ("missing flag", 2, "--question", _line("chat", "tiny")),
        ("resume from a typo", 2, ("'atuo'", "auto, never or"), _line("train", "--resume", "atuo")),
        ("existing output", 2, ("run already holds a run", "--resume auto"), _existing_run),
        ("output inside a file", 6, ("notes.txt/run", "Not a directory"), _file_for_output),
        ("no such run", 2, "there is no folder runs/gone", _line("merge", "runs/gone")),
        ("no such picture", 2, "no picture gone.png", _line("chat", "tiny", "-q", "How many?", "-i", "gone.png")),
        ("a path with a null byte", 2, "a\\x00b", _line("train", "-r", "a\0b.yaml")),
        ("output with a null byte", 2, "a path holds a null byte", _line("train", "-o", "a\0b")),
        ("output with a name too long", 6, "File name too long", _line("train", "-o", "x" * 300)),
        ("a copy inside a file", 6, "Not a directory", _copy_into_a_file),
        ("a name as long as a book", 2, "xxx... (5,000 characters)", _line("data", "check", "x" * 5000)),
        ("half a character", 3, "half a character", _line("chat", "tiny", "-q", "\udcff?")),
        ("a folder that is no checkpoint", 3, ("checkpoint empty is damaged", "manifest.json"), _no_checkpoint),
        (
            "several mistakes at once",
            2,
            ("2 things", "seed is", "max_steps is"),
            _line("train", "--seed=x", "--max-steps=y"),
        ),
    ],
)


def _recipe(text: str | bytes) -> Words:
    def make(folder: Path) -> Sequence[str]:
        (folder / "my.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        return ("recipe", "check", "my.yaml")

    return make


def _recipe_folder(folder: Path) -> Sequence[str]:
    (folder / "my.yaml").mkdir()
    return ("train", "--dry-run", "-r", "my.yaml")


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)

RECIPES = _cases(
    "recipe",
    [
        (
            "unknown key",
            2,
            ("learnin_rate is not a setting (my.yaml, line 2)", "learning_rate?"),
            _recipe("seed: 1\nlearnin_rate: 1"),
        ),
        (
            "key of another library",
            2,
            ("per_device_train_batch_size", "prompts_per_step"),
            _recipe("per_device_train_batch_size: 4"),
        ),
        (
            "wrong type",
            2,
            ("num_generations is 'many' (my.yaml, line 1)", "a whole number >= 2"),
            _recipe("num_generations: many"),
        ),
        ("list for a number", 2, "seed is ['1', '2']", _recipe("seed: [1, 2]")),
        ("number out of range", 2, ("clip_low is 1.5", "below 1"), _recipe("clip_low: 1.5")),
        ("not a number", 2, "learning_rate is '.nan'", _recipe("learning_rate: .nan")),
        ("key twice", 2, "seed is set twice (my.yaml, line 1 and my.yaml, line 2)", _recipe("seed: 1\nseed: 2")),
        (
            "an object to construct",
            2,
            "seed has the tag !!python/object/apply:os.system",
            _recipe('seed: !!python/object/apply:os.system ["touch pwned"]'),
        ),
        ("a tagged number", 2, "seed has the tag !!python/name:os.system", _recipe("seed: !!python/name:os.system 3")),
        (
            "a tag in a table",
            2,
            "reward.functions has the tag !secret",
            _recipe("reward:\n  functions:\n    accuracy: !secret 1"),
        ),
        (
            "trust that nobody typed",
            2,
            ("trust_remote_code is true (my.yaml, line 1)", "--set"),
            _recipe("trust_remote_code: true"),
        ),
        ("a bomb of aliases", 2, ("9 things", "a is not a setting"), _recipe(BOMB)),
        ("an alias of itself", 2, "focus.focus is not a setting", _recipe("focus: &f\n  focus: *f")),
        ("deep nesting", 2, "nested too deeply", _recipe("seed: " + "[" * 5_000)),
        ("not UTF-8", 2, "my.yaml is not UTF-8 text", _recipe(b"seed: \xff\xfe")),
        ("tabs", 2, ("my.yaml, line 2, column 1 is not YAML", "spaces, not tabs"), _recipe("focus:\n\tbeta: 1")),
        ("a list", 2, "my.yaml holds a list", _recipe("- seed: 1")),
        ("two documents", 2, "my.yaml", _recipe("seed: 1\n---\nseed: 2")),
        ("a megabyte", 2, "my.yaml holds 1,200,000 bytes", _recipe("# " + "x" * 1_199_998)),
        ("a folder", 2, "my.yaml is a folder without a config.yaml", _recipe_folder),
    ],
)


def _rows(*rows: dict[str, Any], name: str = "my.jsonl") -> Words:
    return _file("".join(json.dumps(row) + "\n" for row in rows), name)


def _file(content: str | bytes, name: str = "my.jsonl") -> Words:
    def make(folder: Path) -> Sequence[str]:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return (name,)

    return make


def _parquet(**columns: list[Any]) -> Words:
    def make(folder: Path) -> Sequence[str]:
        pyarrow.parquet.write_table(pyarrow.table(columns), folder / "my.parquet")
        return ("my.parquet",)

    return make


def _linked(folder: Path) -> Sequence[str]:
    (folder / "secret.png").write_bytes(png())
    (folder / "data").mkdir()
    (folder / "data" / "inside.png").symlink_to(folder / "secret.png")
    (folder / "data" / "my.jsonl").write_text(json.dumps(GOOD | {"images": ["inside.png"]}))
    return ("data",)


def _misspelt(folder: Path) -> Sequence[str]:
    _rows(GOOD)(folder)
    return ("./my.josnl",)


def _long_prompt(folder: Path) -> Sequence[str]:
    (folder / "my.jsonl").write_text(json.dumps(GOOD | {"problem": "word " * 500}))
    return ("data", "check", "my.jsonl", "--set", "data.max_prompt_length=200")


ROWS = _cases(
    "row",
    [
        ("no image", 3, ("1 x no image: my/train/0", "column images is empty"), _rows(GOOD | {"images": []})),
        ("more marks than images", 3, "2 marks for 1 images", _rows(GOOD | {"problem": "<image> or <image>?"})),
        (
            "more images than marks",
            3,
            "1 marks for 2 images",
            _rows(GOOD | {"problem": "<image>?", "images": GOOD["images"] * 2}),
        ),
        ("no question", 3, "the question is absent", _rows(GOOD | {"problem": None})),
        ("a number for a question", 3, "the question is a int", _rows(GOOD | {"problem": 3})),
        ("half a character", 3, "half a character", _rows(GOOD | {"problem": "\ud800?"})),
        ("a video", 3, "the row holds a video", _rows(GOOD | {"video": "cat.mp4"})),
        ("a mark of a video", 3, "the question has a <video> mark", _rows(GOOD | {"problem": "<video> Who?"})),
        ("an address", 3, "'https://example.org/cat.png'", _rows(GOOD | {"images": ["https://example.org/cat.png"]})),
        ("a path out of the folder", 3, "'../secret.png'", _rows(GOOD | {"images": ["../secret.png"]})),
        ("an absolute path", 3, "'/etc/passwd'", _rows(GOOD | {"images": ["/etc/passwd"]})),
        ("a link out of the folder", 3, "'inside.png' is a link out of the folder", _linked),
        (
            "a path in a table",
            3,
            ("image is named, not held", "'cat.png'"),
            _parquet(problem=["Who?"], images=["cat.png"], answer=["3"]),
        ),
        (
            "no column for the question",
            2,
            ("no column problem, question or prompt", "Columns found: text, images, answer"),
            _rows({"text": "Who?", "images": GOOD["images"], "answer": "3"}),
        ),
        ("no rows", 3, "my.jsonl: no rows", _file("")),
        ("no JSON", 3, "my.jsonl:2 is no JSON", _file(json.dumps(GOOD) + "\n{oops\n")),
        ("numbers for rows", 3, "my.jsonl:1 holds a int", _file("3\n")),
        ("not UTF-8", 3, "my.jsonl is not UTF-8 text", _file(b"\xff\xfe{}")),
        ("half a parquet file", 3, "my.parquet cannot be read as parquet", _file(b"PAR1" + bytes(100), "my.parquet")),
        ("no such file", 2, "there is no data set gone.jsonl", _line("gone.jsonl")),
        ("a misspelt file", 2, ("no data set ./my.josnl", "did you mean my.jsonl?"), _misspelt),
        (
            "a prompt longer than the budget",
            3,
            ("prompt longer than data.max_prompt_length: my/train/0", " tokens, at most 200"),
            _long_prompt,
        ),
    ],
)


def _gold(value: object) -> Words:
    return _rows(GOOD | {"answer": value})


def _of_choices(folder: Path) -> Sequence[str]:
    row = GOOD | {"answer": "D", "choices": ["a cat", "a dog"]}
    (folder / "my.jsonl").write_text(json.dumps(row))
    (folder / "my.yaml").write_text("dataset: my.jsonl\ndata:\n  choices_column: choices\n")
    return ("data", "check", "my.jsonl", "-r", "my.yaml")


GOLDS = _cases(
    "gold",
    [
        ("none", 3, ("no gold", "column answer holds None"), _gold(None)),
        ("blank", 3, "column answer holds ' \\n '", _gold(" \n ")),
        ("an empty tag", 3, "column answer holds '<answer>  </answer>'", _gold("<answer>  </answer>")),
        ("two of them", 3, "the answer is a list, ['3', '4']", _gold(["3", "4"])),
        ("a table", 3, "the answer is a dict, {'value': 3}", _gold({"value": 3})),
        ("not a number", 3, "column answer holds nan", _gold(float("nan"))),
        ("a megabyte of them", 3, "the answer is a list, [1, 1, 1,", _gold([1] * 300_000)),
        ("none of the options", 3, "column answer holds 'D'", _of_choices),
        ("half a character", 3, "half a character", _gold("\udfff")),
        ("an open box", 3, ("gold does not grade itself", r"'\\boxed{3'"), _gold(r"\boxed{3")),
        ("a brace", 3, ("gold does not grade itself", "'}'"), _gold("}")),
        ("dollars around nothing", 3, ("gold does not grade itself", "'$$'"), _gold("$$")),
    ],
)


def _picture(content: bytes | None, name: str = "cat.png") -> Words:
    def make(folder: Path) -> Sequence[str]:
        if content is None:
            (folder / name).mkdir()
        else:
            (folder / name).write_bytes(content)
        return ("chat", "tiny", "-q", "How many?", "-i", name)

    return make


FLOATS = encoded(Image.new("F", (16, 16), 0.5), "TIFF")
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script href="http://example.org/x.js"/></svg>'

IMAGES = _cases(
    "image",
    [
        ("words", 3, ("cat.png cannot be used", "no image of a known format"), _picture(b"a cat")),
        ("nothing", 3, "0 bytes", _picture(b"")),
        (
            "cut short",
            3,
            ("cat.png cannot be used", "truncated"),
            _picture(encoded(corner_pixels(200, 300), "JPEG")[:-200]),
        ),
        ("60 megapixels", 3, ("too many pixels", "10000 x 6000"), _picture(hollow_png(10_000, 6_000))),
        ("a gigapixel", 3, "too many pixels", _picture(jpeg_of_size(65_000, 65_000))),
        ("a thread", 3, ("aspect ratio", "1 x 101 pixels"), _picture(hollow_png(1, 101))),
        ("pixels that lie", 3, "undecodable", _picture(hollow_png(600, 600))),
        ("drawing commands", 3, "no image of a known format", _picture(SVG, "cat.svg")),
        ("numbers without a scale", 3, "floating-point", _picture(FLOATS, "cat.tiff")),
        ("a folder", 2, "there is no picture cat.png", _picture(None)),
        ("broken base64", 3, ("undecodable image", "not base64"), _rows(GOOD | {"images": [address(png())[:-1]]})),
        ("a number", 3, "the image is a int, expected bytes", _rows(GOOD | {"images": [7]})),
    ],
)


def _adapter(spoil: Callable[[Path, dict[str, Any], dict[str, torch.Tensor]], None] | None = None) -> Words:
    """A merge of an adapter for the tiny model, spoilt: its folder, the content of its configuration, its weights."""

    def make(folder: Path) -> Sequence[str]:
        adapter = folder / "adapter"
        adapter.mkdir()
        config: dict[str, Any] = {
            "peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "tiny",
            "target_modules": ["q_proj"],
        }  # fmt: skip
        layer = "base_model.model.model.language_model.layers.0.self_attn.q_proj"
        weights = {f"{layer}.lora_A.weight": torch.ones(2, 128), f"{layer}.lora_B.weight": torch.ones(128, 2)}
        if spoil is not None:
            spoil(adapter, config, weights)
        if not (adapter / "adapter_config.json").exists():
            (adapter / "adapter_config.json").write_text(json.dumps(config))
        if weights:
            save_file(weights, adapter / "adapter_model.safetensors")
        return ("merge", "adapter", "-o", "merged", "--no-verify")

    return make


def _with(**changes: object) -> Words:
    return _adapter(lambda folder, config, weights: config.update(changes))


def _all_zero(folder: Path, config: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
    for name in weights:
        weights[name] = weights[name] * ("lora_A" in name)


def _without_b(folder: Path, config: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
    weights.popitem()


def _of_another_model(folder: Path, config: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
    name = next(iter(weights))
    weights[name] = torch.ones(2, 96)


def _with_vectors(folder: Path, config: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
    for name in weights:
        weights[name] = torch.ones(2)


def _not_finite(folder: Path, config: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
    weights[next(iter(weights))][0, 0] = float("inf")


def _pickled(folder: Path, config: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
    weights.clear()
    (folder / "adapter_model.bin").write_bytes(b"\x80\x04cos\nsystem\n.")


def _no_weights(folder: Path, config: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
    weights.clear()


def _cut_config(folder: Path, config: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
    (folder / "adapter_config.json").write_text(json.dumps(config)[:-20])


def _truncated_adapter(folder: Path) -> Sequence[str]:
    words = _adapter()(folder)
    path = folder / "adapter" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-64])
    return words


def _no_adapter(folder: Path) -> Sequence[str]:
    (folder / "adapter").mkdir()
    return ("merge", "adapter", "-o", "merged")


ADAPTERS = _cases(
    "adapter",
    [
        ("an empty folder", 3, "adapter holds no adapter", _no_adapter),
        ("half a configuration", 3, "adapter_config.json is missing or damaged", _adapter(_cut_config)),
        ("another method", 3, "of a PROMPT_TUNING adapter", _with(peft_type="PROMPT_TUNING")),
        ("another form", 3, "use_dora=True", _with(use_dora=True)),
        ("rank 0", 3, "r 0", _with(r=0)),
        ("a scale that is no number", 3, "alpha nan", _with(lora_alpha=float("nan"))),
        ("a rank that its weights do not have", 3, ("says r 16", "[2, 128]"), _with(r=16)),
        ("vectors for matrices", 3, ("says r 2", "[2] and [2]"), _adapter(_with_vectors)),
        ("no model named", 3, "does not say which model", _with(base_model_name_or_path=None)),
        (
            "a model that does not exist",
            3,
            ("no model 'qwen2-vl-2'", "qwen2-vl-2b?"),
            _with(base_model_name_or_path="qwen2-vl-2"),
        ),
        (
            "weights of another model",
            3,
            ("leave out 1 weights", "layers.0.self_attn.q_proj"),
            _adapter(_of_another_model),
        ),
        ("no weights", 3, "adapter_model.safetensors is missing or damaged", _adapter(_no_weights)),
        ("cut weights", 3, "adapter_model.safetensors is missing or damaged", _truncated_adapter),
        ("pickled weights", 3, ("adapter_model.bin, a pickle", "safetensors"), _adapter(_pickled)),
        ("half of a pair", 3, ("q_proj (half of a pair)", "leave out 1 weights"), _adapter(_without_b)),
        ("every B zero", 3, ("learned nothing", "every B is zero"), _adapter(_all_zero)),
        ("an infinite weight", 3, ("not finite", "layers.0.self_attn.q_proj"), _adapter(_not_finite)),
    ],
)


def _model(spoil: Callable[[Path], None]) -> Words:
    """A question to a copy of the tiny model, spoilt."""

    def make(folder: Path) -> Sequence[str]:
        model = folder / "model"
        model.mkdir()
        for path in TINY_FOLDER.iterdir():
            if path.suffix in (".json", ".jinja"):
                shutil.copyfile(path, model / path.name)
        (model / "model.safetensors").symlink_to(TINY_FOLDER / "model.safetensors")
        spoil(model)
        return ("chat", "model", "-q", "How many?")

    return make


def _configured(**changes: object) -> Words:
    def spoil(model: Path) -> None:
        config = json.loads((model / "config.json").read_text()) | changes
        (model / "config.json").write_text(json.dumps(config))

    return _model(spoil)


def _holding(name: str, content: bytes | None) -> Words:
    """The model with one file replaced, or removed."""

    def spoil(model: Path) -> None:
        (model / name).unlink(missing_ok=True)
        if content is not None:
            (model / name).write_bytes(content)

    return _model(spoil)


def _pickled_model(model: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n.")


def _truncated_model(model: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "model.safetensors").write_bytes((TINY_FOLDER / "model.safetensors").read_bytes()[:-1000])


def _remote_code(model: Path) -> None:
    (model / "config.json").write_text(json.dumps({"model_type": "my_vl", "auto_map": {"AutoConfig": "code.MyConfig"}}))
    (model / "code.py").write_text("import pathlib\npathlib.Path('pwned').touch()\n")


INDEX = "model.safetensors.index.json"

MODELS = _cases(
    "model folder",
    [
        ("no config.json", 3, "model has no config.json", _holding("config.json", None)),
        ("half a config.json", 3, "config.json is damaged", _holding("config.json", b'{"model_type": "qwen2')),
        ("a list for a config", 3, "config.json is damaged", _holding("config.json", b"[]")),
        ("a list for a name", 3, "gives ['qwen2_vl'] as its model_type", _configured(model_type=["qwen2_vl"])),
        (
            "an unknown architecture",
            3,
            ("'qwen2_vlm' model, which is not supported", "The nearest is qwen2_vl."),
            _configured(model_type="qwen2_vlm"),
        ),
        ("remote code", 3, "'my_vl' model, which is not supported", _model(_remote_code)),
        ("quantized otherwise", 3, "quantized with gptq", _configured(quantization_config={"quant_method": "gptq"})),
        ("a word for a quantization", 3, "its quantization_config is 'nf4'", _configured(quantization_config="nf4")),
        ("nonsense in the config", 3, "config.json cannot be used", _configured(text_config="small")),
        ("no weights", 3, "has no weights", _holding("model.safetensors", None)),
        ("pickled weights", 3, ("pytorch_model.bin, a pickle", "expected safetensors"), _model(_pickled_model)),
        ("cut weights", 3, ("the weights in", "cannot be read"), _model(_truncated_model)),
        (
            "a shard that is missing",
            3,
            "model-00002.safetensors is missing",
            _holding(INDEX, b'{"weight_map": {"a": "model-00002.safetensors"}}'),
        ),
        ("half an index", 3, f"{INDEX} is damaged", _holding(INDEX, b'{"weight_map')),
        ("an index without a map", 3, f"{INDEX} is damaged", _holding(INDEX, b"[]")),
        ("no tokenizer", 3, "model", _holding("tokenizer.json", None)),
        ("no chat template", 3, "has no chat template", _holding("chat_template.jinja", None)),
    ],
)

CASES = [*COMMAND_LINES, *RECIPES, *ROWS, *GOLDS, *IMAGES, *ADAPTERS, *MODELS]

_DEEP = r"\frac{1}{" * 300 + "4" + "}" * 300
ANSWERS: dict[str, tuple[str, str]] = {
    "an equation that is false": ("4", r"\boxed{3=4}"),
    "a list": ("4", r"\boxed{4,4}"),
    "a list in brackets": ("4", r"\boxed{[4, 4]}"),
    "a set": ("4", r"\boxed{\{4\}}"),
    "an interval": ("4", r"\boxed{(4, 5)}"),
    "a membership": ("4", r"\boxed{x \in \{4\}}"),
    "a percentage": ("4", r"\boxed{4\%}"),
    "either": ("4", r"\boxed{4 \text{ or } 5}"),
    "a range": ("4", r"\boxed{\pm 4}"),
    "no box": ("4", "the answer is 4"),
    "an open box": ("4", r"so \boxed{4"),
    "a blank box": ("4", r"\boxed{ }"),
    "the box before the last": ("4", r"\boxed{4} no, \boxed{5}"),
    "a tower of powers": ("4", r"\boxed{10**10**10}"),
    "a tower in LaTeX": ("4", r"\boxed{10^{10^{10}}}"),
    "a factorial": ("4", r"\boxed{(10^9)!}"),
    "a long sum": ("4", r"\boxed{\sum_{i=1}^{10^{12}} \frac{1}{i}}"),
    "a nest of fractions": ("4", rf"\boxed{{{_DEEP}}}"),
    "a nest of brackets": ("4", rf"\boxed{{{'(' * 900}4{')' * 900}}}"),
    "a nest of boxes": ("4", r"\boxed{" * 5000 + "5" + "}" * 5000),
    "a megabyte of digits": ("4", rf"\boxed{{{'9' * 10**6}}}"),
    "a megabyte of words": ("4", r"\boxed{" + "four " * 200_000 + "}"),
    "a megabyte of open boxes": ("4", r"\boxed{" * 150_000),
    "a program": ("4", r"\boxed{__import__('pathlib').Path('pwned').touch()}"),
    "a file to include": ("4", r"\boxed{\input{/etc/passwd}}"),
    "control characters": ("4", "\\boxed{4\x00\x1b[2J}"),
    "half a character": ("4", "\\boxed{\ud800}"),
}
"""Hostile answers, each with its gold; every one of them is wrong."""
