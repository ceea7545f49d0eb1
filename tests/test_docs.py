"""The examples of the pages on options run, and every option is on one of these pages."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import rnnfast as rf

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGES = sorted(page for page in (DOCS / "options").glob("*.md") if page.name != "README.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_examples_run(page: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert blocks
    for block in blocks:
        exec(compile(block, str(page), "exec"), {})


@pytest.mark.parametrize("function", [rf.RNN, rf.LSTM, rf.GRU, rf.GRU.__call__, rf.GRU.forward])
def test_every_option_has_a_page(function: Any) -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY and name not in ("dtype", "seed"):
            assert f"`{name}" in text, name
            assert f"`{name}`" in (DOCS / "options" / "README.md").read_text(encoding="utf-8"), name


def test_links_between_the_pages_lead_somewhere() -> None:
    for page in (*PAGES, DOCS / "options" / "README.md"):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).is_file(), (page.name, target)
