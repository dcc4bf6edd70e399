"""What is said of a configuration that cannot be used: everything, at once, in plain words."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st

from vgpo_lite.config.load import check_recipe, load_config
from vgpo_lite.errors import ConfigError


def message(*args, **kwargs) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(*args, **kwargs)
    return str(caught.value)


def recipe_message(tmp_path, content: str | bytes) -> str:
    path = tmp_path / "my.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return message(path).replace(str(path), "my.yaml")


def test_all_problems_of_all_layers_are_told_at_once(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text("learning_rate: fast\nfocus:\n  betta: 0.1\n")
    text = message(path, model="qwen2-vl-2", dataset="geo4k", overrides=["loss=dapp", "num_generations=1"], seed=-1)
    assert text.splitlines() == [
        "7 things in the configuration need a change:",
        "  1. there is no model qwen2-vl-2 (argument model); expected "
        + text.split("expected ")[1].split("; did you mean")[0]
        + "; did you mean qwen2-vl-2b?",
        text.splitlines()[2],
        f"  3. focus.betta is not a setting ({path}, line 3); did you mean focus.beta?",
        "  4. seed is -1 (argument seed); expected a whole number >= 0 and < 2,147,483,648.",
        "  5. loss is 'dapp' (--set loss=dapp); expected one of dapo, grpo, dr_grpo, gspo, cispo; did you mean dapo?",
        "  6. num_generations is 1 (--set num_generations=1); expected a whole number >= 2.",
        f"  7. learning_rate is 'fast' ({path}, line 1); expected a number >= 0.",
    ]
    assert text.splitlines()[2].endswith("did you mean geo3k?")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("max_pixels=1000", "max_pixels is not a setting (--set max_pixels=1000); did you mean data.max_pixels?"),
        ("epsilon_high=0.3", "epsilon_high is not a setting (--set epsilon_high=0.3); did you mean clip_high?"),
        ("lr=1", "lr is not a setting (--set lr=1); did you mean learning_rate?"),
        ("beta=1", "did you mean focus.beta (compensation) or kl_coefficient (KL)?"),
        ("focus.gama=1", "did you mean focus.gamma?"),
        ("fokus.gamma=1", "did you mean focus.gamma?"),
        ("xyzzy=1", "xyzzy is not a setting (--set xyzzy=1)."),
        ("lora=16", "lora is '16' (--set lora=16); expected settings inside it: r, alpha, vision."),
        ("seed", "--set 'seed' has no value; expected KEY=VALUE, such as focus.beta=0.2."),
        ("=3", "--set '=3' has no value; expected KEY=VALUE, such as focus.beta=0.2."),
        ("seed=", "seed is null (--set seed=); expected a whole number"),
        ("seed=1.5", "seed is '1.5' (--set seed=1.5); expected a whole number"),
        ("learning_rate=nan", "learning_rate is 'nan' (--set learning_rate=nan); expected a number >= 0."),
        ("top_p=1.5", "top_p is 1.5 (--set top_p=1.5); expected a number > 0 and <= 1."),
        ("gradient_checkpointing=maybe", "expected true or false."),
        ("memory.rows_per_micro_batch=atuo", "expected a whole number >= 1, or auto; did you mean auto?"),
        ("memory.rows_per_micro_batch=0", "is 0 (--set memory.rows_per_micro_batch=0); expected a whole number >= 1"),
        ("reward.functions.accuracy=lots", "expected a mapping of names to numbers."),
        ("reward.functions=3", "reward.functions is '3' (--set reward.functions=3); expected a mapping"),
        ("reward.functions.acuracy=1", "reward.functions names acuracy"),
        ("reward.functions={accuracy: 0}", "nothing to learn from"),
        ("data.min_pixels=500000", "data.min_pixels is 500,000, above data.max_pixels, which is 401,408"),
        ("clip_low=1.5", "clip_low is 1.5; it must be below 1"),
        ("report_to=None", "report_to is 'None' (--set report_to=None); expected one of none"),
        ("model=~nobody/there", "there is no model ~nobody/there (--set model=~nobody/there); expected"),
        ("model=a\0b", "there is no model a\0b (--set model=a\0b); expected"),
        ("dataset=./rows", "there is no data set ./rows (--set dataset=./rows); expected"),
        ("model=", "model is null (--set model=); expected text."),
    ],
)
def test_each_wrong_override_is_told_with_what_was_meant(override, expected):
    assert expected in message(overrides=[override])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("seed: 1\nseed: 2\n", "seed is set twice (my.yaml, line 1 and my.yaml, line 2)."),
        ("focus:\n  beta: 1\nfocus:\n  beta: 2\n", "focus.beta is set twice (my.yaml, line 2 and my.yaml, line 4)."),
        ("focus: {beta: 1}\nfocus.beta: 2\n", "focus.beta is set twice"),
        ("reward:\n  functions:\n    format: 1\n    format: 2\n", "reward.functions names format twice"),
        ("- seed\n- 3\n", "my.yaml holds a list; expected a mapping of settings"),
        ("just words\n", "my.yaml holds only 'just words'; expected a mapping of settings"),
        ("seed: [1, 2]\n", "seed is ['1', '2'] (my.yaml, line 1); expected a whole number"),
        ("seed: {a: 1}\n", "seed is {'a': '1'} (my.yaml, line 1); expected a whole number"),
        ("focus: 3\n", "focus is '3' (my.yaml, line 1); expected settings inside it: signal, beta"),
        ("focus: [beta]\n", "focus is ['beta'] (my.yaml, line 1); expected settings inside it"),
        ("seed: 1\n\tloss: dapo\n", "line 2, column 1 is not YAML: found character '\\t' that cannot start any token"),
        ("\tseed: 1\n", "YAML indents with spaces, not tabs"),
        ("seed: 'open\n", "is not YAML: found unexpected end of stream"),
        ("a: 1\n---\nb: 2\n", "is not YAML"),
        ("learning_rate: !!python/object/apply:os.system [ls]\n", "learning_rate has the tag !!python"),
        (b"\xff\xfe\x00s", "my.yaml is not UTF-8 text; expected a page of YAML"),
        (b"seed: \x00\n", "my.yaml is not YAML"),
        ("[" * 5000, "my.yaml is nested too deeply"),
        ("seed: &a [*a]\n", "seed is ["),
        ("x" * 1_100_000, "my.yaml holds 1,100,000 bytes; expected a page of YAML"),
        ("seed: 99999999999999999999\n", "expected a whole number >= 0 and < 2,147,483,648"),
        ("1: 2\n", "1 is not a setting (my.yaml, line 1)."),
        ("[a]: 2\n", "['a'] is not a setting (my.yaml, line 1)."),
        ("dataset: no-such-rows\n", "there is no data set no-such-rows (my.yaml, line 1); expected clevr-count"),
    ],
)
def test_each_broken_recipe_is_told_with_its_line(tmp_path, content, expected):
    assert expected in recipe_message(tmp_path, content)


def test_an_unknown_recipe_is_told_with_the_nearest_and_the_list(tmp_path):
    assert message("vgop").endswith("or the path of a YAML file; did you mean vgpo?")
    assert "dapo-baseline" in message("vgop")
    assert (
        message("qwen2-vl-2b") == "qwen2-vl-2b is a model recipe, not a run recipe; did you mean --model qwen2-vl-2b?"
    )
    (tmp_path / "mine.yaml").write_text("seed: 1\n")
    assert message(tmp_path / "mina.yaml").endswith(f"did you mean {tmp_path / 'mine.yaml'}?")
    assert "is a folder without a config.yaml" in message(tmp_path)


def test_a_recipe_that_may_not_be_read_is_told(tmp_path, monkeypatch):
    path = tmp_path / "my.yaml"
    path.write_text("seed: 1\n")

    read = Path.read_text

    def refuse(file: Path, *args, **kwargs) -> str:
        if file == path:
            raise PermissionError(13, "Permission denied")
        return read(file, *args, **kwargs)

    monkeypatch.setattr("pathlib.Path.read_text", refuse)
    assert message(path) == f"{path} cannot be read: Permission denied."


@pytest.mark.parametrize(
    ("line", "key", "value"),
    [
        ("learning_rate: 5e-6", "learning_rate", 5e-6),  # YAML 1.1 reads text
        ("learning_rate: 1", "learning_rate", 1.0),
        ("learning_rate: '5e-6'", "learning_rate", 5e-6),
        ("max_steps: 1e3", "max_steps", 1000),
        ("max_steps: 1_000", "max_steps", 1000),
        ("max_steps: '1,000'", "max_steps", 1000),
        ("max_steps: 010", "max_steps", 10),  # octal in YAML 1.1
        ("quantization: none", "quantization", "none"),
        ("gradient_checkpointing: off", "gradient_checkpointing", False),
        ("gradient_checkpointing: Yes", "gradient_checkpointing", True),
        ("revision: 1e10", "revision", "1e10"),  # a commit, not a number
        ("revision: 0123456", "revision", "0123456"),
        ("revision: 2024-01-01", "revision", "2024-01-01"),
        ("revision: null", "revision", None),
        ("revision: 'null'", "revision", "null"),
        ("revision: ~", "revision", None),
        ("output: on", "output", "on"),
        ("output: 12:30", "output", "12:30"),  # sexagesimal in YAML 1.1
        ("clip_high: auto", "clip_high", "auto"),
        ("clip_high: 0.3", "clip_high", 0.3),
    ],
)
def test_values_are_read_by_the_type_of_their_setting(tmp_path, line, key, value):
    path = tmp_path / "my.yaml"
    path.write_text(line + "\n")
    read = load_config(path).model_dump()[key]
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize("content", ["", "# only a comment\n", "focus:\n  # beta: 1\n", "\ufeffseed: 0\n", "null\n"])
def test_a_recipe_that_says_nothing_changes_nothing(tmp_path, content):
    path = tmp_path / "my.yaml"
    path.write_text(content, encoding="utf-8")
    assert load_config(path) == load_config()


def test_values_of_the_wrong_python_type_are_refused():
    assert "max_steps is true (argument max_steps); expected a whole number >= 1." in message(max_steps=True)
    assert "learning_rate is [1] (argument learning_rate)" in message(learning_rate=[1])
    assert "focus.beta is -1 (argument focus); expected a number >= 0." in message(focus={"beta": -1})
    assert "wings is not a setting (argument wings)." in message(wings=2)
    assert "focus is 3 (argument focus)" in message(focus=3)


def test_checking_a_preset_tells_what_is_wrong_in_it(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("data:\n  max_pixel: 1\n")
    with pytest.raises(
        ConfigError, match=r"data\.max_pixel is not a setting \(mine, line 2\); did you mean data\.max_pixels"
    ):
        check_recipe(path, "mine")


def assert_reads_or_refuses(*args, **kwargs) -> None:
    """Whatever is given, there is a configuration or a message: nothing else may come out."""
    try:
        load_config(*args, **kwargs)
    except ConfigError as error:
        told = str(error)
        assert told.endswith((".", "?")), told


@effort(deadline=None, max_examples=60)
@given(st.binary(max_size=200))
def test_no_bytes_of_a_recipe_can_do_worse_than_a_config_error(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("recipe") / "my.yaml"
    path.write_bytes(content)
    assert_reads_or_refuses(path)


keys = st.sampled_from(["seed", "focus", "focus.beta", "reward.functions", "model", "dataset", "x", ""])


@effort(deadline=None, max_examples=60)
@given(st.lists(st.tuples(keys, st.text(max_size=20))))
def test_no_override_can_do_worse_than_a_config_error(pairs):
    assert_reads_or_refuses(overrides=[f"{key}={value}" for key, value in pairs])


@effort(deadline=None, max_examples=60)
@given(st.dictionaries(keys, st.recursive(st.none() | st.text(max_size=9) | st.floats() | st.integers(), st.lists)))
def test_no_argument_can_do_worse_than_a_config_error(flags):
    assert_reads_or_refuses(**flags)


PIECES = [
    *("seed", "focus", "focus.beta", "beta", "reward", "functions", "accuracy", "model", "data", "limit", "x", "tiny"),
    *(": ", ":\n  ", "\n", "\n  ", "\n- ", ", ", "[", "]", "{", "}", "? ", "| ", "> ", "# ", "'", '"', "\t", "\x00"),
    *("&a ", "*a", "<<: *a", "!!python/object/apply:os.system ", "!!int ", "!x ", "!!set ", "%YAML 9.9\n", "---\n"),
    *("1", "-1", "1e999", ".nan", ".inf", "0x1F", "1_000", "null", "~", "yes", "2026-01-01", "\ud800", "\x85", "..."),
]


@effort(deadline=None, max_examples=120)
@given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join))
def test_no_yaml_can_do_worse_than_a_config_error(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("recipe") / "my.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    assert_reads_or_refuses(path)
    assert_reads_or_refuses(overrides=[f"reward.functions={text}", text])
