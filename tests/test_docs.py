"""What the documentation shows must parse, import and lead somewhere."""

import ast
import importlib
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def blocks(language):
    for page in PAGES:
        for number, block in enumerate(re.findall(rf"```{language}\n(.*?)```", page.read_text("utf-8"), re.DOTALL)):
            yield pytest.param(block, id=f"{page.name}-{number}")


def check_imports(code):
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("dragontune"):
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name), f"{node.module} has no {alias.name}"


@pytest.mark.parametrize("code", blocks("python"))
def test_snippets_import_what_is_there(code):
    check_imports(code)


@pytest.mark.parametrize("text", blocks("yaml"))
def test_recipes_in_the_docs_are_yaml(text):
    fields = {"model", "lora", "reward", "algorithm", "loop", "prompts", "guard", "evaluation"}
    fields |= {"precision", "size", "plan", "start", "family", "allow_pickle"}
    assert set(yaml.safe_load(text)) <= fields


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_are_short_and_import_what_is_there(path):
    code = path.read_text("utf-8")
    assert len(code.splitlines()) < 60
    assert ast.get_docstring(ast.parse(code))
    check_imports(code)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text("utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_files_named_in_the_papers_are_there():
    text = (ROOT / "docs" / "papers.md").read_text("utf-8")
    for name in re.findall(r"`([a-z_]+/?[a-z_]*\.py)`", text):
        assert (ROOT / "src" / "dragontune" / name).exists(), name


def test_the_reward_of_the_docs_keeps_its_promises():
    import torch

    from dragontune import Audio, Samples

    block = next(param.values[0] for param in blocks("python") if "class Quiet" in str(param.values[0]))
    names: dict[str, Any] = {"__name__": "documented"}
    exec(compile(str(block), "extend.md", "exec"), names)
    levels = torch.tensor([0.1, 0.5, 0.01])
    waves = levels[:, None, None] * torch.randn(3, 1, 800, generator=torch.Generator().manual_seed(0))
    scores = names["Quiet"]()(Samples(("a", "b", "c"), torch.zeros(3, 2), Audio(waves, 16000)))
    assert scores.argsort().tolist() == [1, 0, 2]
