"""GGUF files by the user's own llama.cpp. A stand-in takes its place: it proves what is asked of it, and no more."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from vgpo_lite.commands import main
from vgpo_lite.errors import ConfigError, MergeError
from vgpo_lite.export.card import MergeReport
from vgpo_lite.export.gguf import find_converter, write_gguf

STAND_IN = """
import json, pathlib, sys
here = pathlib.Path(__file__).parent
with (here / "asked.jsonl").open("a") as log:
    log.write(json.dumps([sys.executable, *sys.argv]) + "\\n")
out = pathlib.Path(sys.argv[sys.argv.index("--outfile") + 1])
part = "vision" if "--mmproj" in sys.argv else "text"
print(f"converting the {part} part", flush=True)
if "vision" == part and (here / "prefix").exists():
    out = out.with_name(f"mmproj-{out.name}")
if (here / f"fail-{part}").exists():
    out.write_bytes(b"half")
    print("Model Qwen2VLForConditionalGeneration is not supported", file=sys.stderr)
    sys.exit(3)
if not (here / f"nothing-{part}").exists():
    out.write_bytes(b"GGUF " + part.encode())
"""


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    folder = tmp_path / "my 'llama' cpp"
    folder.mkdir()
    (folder / "convert_hf_to_gguf.py").write_text(STAND_IN)
    return folder


@pytest.fixture
def merged(tmp_path: Path) -> Path:
    folder = tmp_path / "a $merged folder"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


def asked(llama: Path) -> list[list[str]]:
    return [json.loads(line) for line in (llama / "asked.jsonl").read_text().splitlines()]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(("outtype", "vision_type"), [("auto", "auto"), ("bf16", "bf16"), ("q8_0", "auto")])
@pytest.mark.parametrize("prefixed", [True, False])
def test_the_converter_is_asked_for_the_text_model_and_then_for_the_vision_tower(
    llama: Path, merged: Path, outtype: str, vision_type: str, prefixed: bool
) -> None:
    if prefixed:
        (llama / "prefix").touch()
    lines: list[str] = []
    text, vision = write_gguf(merged, find_converter(llama), outtype=outtype, on_line=lines.append)
    (python, script, *first), (_, _, *second) = asked(llama)
    assert python == sys.executable
    assert script == str(llama / "convert_hf_to_gguf.py")
    assert [first[0], first[1], *first[3:]] == [str(merged), "--outfile", "--outtype", outtype]
    assert [second[0], second[1], *second[3:]] == [str(merged), "--outfile", "--outtype", vision_type, "--mmproj"]
    assert lines == ["converting the text part", "converting the vision part"]
    assert (text.name, vision.name) == ("a $merged folder.gguf", "mmproj-a $merged folder.gguf")
    assert (text.read_bytes(), vision.read_bytes()) == (b"GGUF text", b"GGUF vision")
    assert names(merged) == {"config.json", text.name, vision.name}


@pytest.mark.parametrize("part", ["text", "vision"])
def test_a_converter_that_fails_leaves_the_folder_as_it_was_and_its_words_are_told(
    llama: Path, merged: Path, part: str
) -> None:
    (llama / f"fail-{part}").touch()
    with pytest.raises(MergeError, match=rf"ended with 3 on the {part} part .*Qwen2VL\w+ is not supported") as caught:
        write_gguf(merged, find_converter(llama), outtype="f16", on_line=lambda line: None)
    assert f"vgpo-lite merge '{merged}' --gguf " in str(caught.value)
    assert names(merged) == {"config.json"}


def test_a_converter_that_writes_nothing_is_no_success(llama: Path, merged: Path) -> None:
    (llama / "nothing-vision").touch()
    with pytest.raises(MergeError, match=r"on the vision part .* left nothing; expected one \.gguf file"):
        write_gguf(merged, find_converter(llama), outtype="f16", on_line=lambda line: None)
    assert names(merged) == {"config.json"}


def test_whoever_watches_may_stop_the_converter(llama: Path, merged: Path) -> None:
    def stop(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_gguf(merged, find_converter(llama), outtype="f16", on_line=stop)
    assert names(merged) == {"config.json"}


def test_the_script_itself_may_be_named_and_what_is_no_checkout_is_refused(llama: Path, tmp_path: Path) -> None:
    script = llama / "convert_hf_to_gguf.py"
    assert find_converter(script) == find_converter(llama) == script
    for place in (tmp_path, tmp_path / "nowhere", llama / "asked.jsonl"):
        with pytest.raises(ConfigError, match=r"there is no convert_hf_to_gguf\.py; expected the folder of a checkout"):
            find_converter(place)


@pytest.fixture
def merges(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Stands in for the merge itself: where it was asked to write."""
    made: list[Path] = []

    def merge(source: Path, output: Path, **_: object) -> MergeReport:
        output.mkdir()
        (output / "config.json").write_text("{}")
        made.append(output)
        return MergeReport(
            output=str(output), model_id="tiny", revision=None, base="dequantized", dtype="float32", layers=1,
            rounding_error=0.0, agreement=None,
        )  # fmt: skip

    monkeypatch.setattr("vgpo_lite.export.merge", merge)
    return made


def code_of(*words: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(["merge", *words])
    return int(left.value.code or 0)


def test_the_command_merges_and_converts_and_a_merged_folder_is_only_converted(
    llama: Path, tmp_path: Path, merges: list[Path], capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "run").mkdir()
    assert code_of(str(tmp_path / "run"), "-o", str(tmp_path / "out"), "--gguf", str(llama)) == 0
    printed = capsys.readouterr()
    assert "converting the vision part" in printed.err
    assert (
        f"llama-mtmd-cli -m {tmp_path / 'out' / 'out.gguf'} --mmproj {tmp_path / 'out' / 'mmproj-out.gguf'}"
        in printed.out
    )
    assert "not compared with the adapter" in printed.out
    assert merges == [tmp_path / "out"]
    (tmp_path / "out" / "out.gguf").unlink()
    assert code_of(str(tmp_path / "out"), "--gguf", str(llama), "--gguf-type", "q8_0") == 0
    assert (tmp_path / "out" / "out.gguf").read_bytes() == b"GGUF text"
    assert merges == [tmp_path / "out"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--gguf", "nowhere"], "no convert_hf_to_gguf.py"),
        (["--gguf", "LLAMA", "--gguf-type", "q4_k_m"], "--gguf-type is 'q4_k_m'; expected one of auto, f32"),
    ],
)
def test_what_is_wrong_with_the_converter_shows_before_anything_is_merged(
    llama: Path, tmp_path: Path, merges: list[Path], capsys: pytest.CaptureFixture, words: list[str], told: str
) -> None:
    (tmp_path / "run").mkdir()
    words = [str(llama) if word == "LLAMA" else word for word in words]
    assert code_of(str(tmp_path / "run"), *words) == 2
    assert told in capsys.readouterr().err
    assert merges == []


def test_a_converter_that_fails_ends_the_command_with_3(
    llama: Path, merged: Path, capsys: pytest.CaptureFixture
) -> None:
    (llama / "fail-text").touch()
    assert code_of(str(merged), "--gguf", str(llama)) == 3
    assert "The merged folder is complete" in capsys.readouterr().err
