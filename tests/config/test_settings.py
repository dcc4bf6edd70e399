"""Every setting is documented, has a source for its default, and is read by the package."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import vgpo_lite
from vgpo_lite.config.problems import KNOWN_ELSEWHERE
from vgpo_lite.config.reference import ORIGINS, default_recipe, settings_page
from vgpo_lite.config.schema import RunConfig
from vgpo_lite.config.settings import sections, settings

PACKAGE = Path(vgpo_lite.__file__).parent
SCHEMA = {PACKAGE / "config" / name for name in ("schema.py", "sections.py", "reference.py", "load.py", "problems.py")}


def attributes_read(paths: list[Path]) -> set[str]:
    """Names of all attributes that code reads, such as `beta` in `config.focus.beta`; calls of methods do not count."""
    nodes = [node for path in paths for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    called = {id(node.func) for node in nodes if isinstance(node, ast.Call)}
    return {node.attr for node in nodes if isinstance(node, ast.Attribute) and id(node) not in called}


@pytest.fixture(scope="module")
def attributes() -> set[str]:
    outside = attributes_read([path for path in PACKAGE.rglob("*.py") if path not in SCHEMA])
    inside = attributes_read([PACKAGE / "config" / "schema.py"])  # what a derived property reads is read with it
    return outside | inside


@pytest.mark.parametrize("key", list(settings()))
def test_every_setting_is_read(key, attributes):
    assert key.rpartition(".")[2] in attributes, f"nothing outside the schema reads {key}"


@pytest.mark.parametrize("key", list(settings()))
def test_every_setting_is_documented(key):
    setting = settings()[key]
    assert setting.meaning.rstrip().endswith("."), f"{key} has no sentence that says what it does"
    assert setting.expected
    assert ORIGINS[key]


def test_no_default_has_a_source_without_a_setting():
    assert set(ORIGINS) == set(settings())


def test_every_section_says_what_it_is_for():
    assert all(meaning.endswith(".") for meaning in sections().values())


def test_the_page_of_settings_is_current():
    page = PACKAGE.parent / "docs" / "settings.md"
    assert page.read_text(encoding="utf-8") == settings_page(), "run `make docs`"


def test_the_default_recipe_changes_nothing_and_holds_every_setting(tmp_path):
    from vgpo_lite import load_config

    path = tmp_path / "all.yaml"
    path.write_text(default_recipe(), encoding="utf-8")
    assert load_config(path) == load_config()
    lines = default_recipe().splitlines()
    path.write_text("\n".join(re.sub(r"^(\s*)# ", r"\1", line) for line in lines[1:]), encoding="utf-8")
    assert set(load_config(path).sources) == set(settings())
    assert load_config(path) == RunConfig()


def test_names_of_other_libraries_lead_to_settings_that_exist():
    for name, meant in KNOWN_ELSEWHERE.items():
        assert name not in settings()
        assert meant.split(" ")[0] in settings(), name
