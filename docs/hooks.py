"""Hooks of the documentation site: pages whose files are outside docs/.

LOG.md, CONTRIBUTING.md, SECURITY.md and the notebook stay where readers of the repository look for
them. The site shows each as a page, and links between them and docs/ work in both places. This
file is used by mkdocs alone and is not part of the package.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {  # file of the repository: page of the site
    "LOG.md": "log.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "notebooks/quickstart.ipynb": "notebook.md",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of `PAGES`."""
    for source, page in PAGES.items():
        path = ROOT / source
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".ipynb":
            text = "\n\n".join(_blocks(json.loads(text)))
        for folder in ("../docs/", "docs/"):
            text = text.replace(f"]({folder}", "](")
        for other, target in PAGES.items():
            text = text.replace(f"]({other}", f"]({target}")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Point links that leave docs/ to the pages of `PAGES`."""
    for source, page in PAGES.items():
        markdown = markdown.replace(f"](../{source}", f"]({page}")
    return markdown


def _blocks(notebook: dict[str, Any]) -> Iterator[str]:
    """A notebook as Markdown: each piece of code is followed by its output."""
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        yield source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```"
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if "image/png" in data:
                yield f"![output](data:image/png;base64,{''.join(data['image/png']).strip()})"
            elif output.get("name") == "stderr":
                continue
            elif text := output.get("text") or data.get("text/plain"):
                yield f"```text\n{''.join(text).rstrip()}\n```"


class Doctests(griffe.Extension):
    """Doctests of the API reference become blocks of code; griffe takes them for prose."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            block = re.compile(r"^>>> .*(?:\n.+)*", re.MULTILINE)
            obj.docstring.value = block.sub(r"```pycon\n\g<0>\n```", obj.docstring.value)


class PydanticDataclasses(griffe.Extension):
    """In the API reference a pydantic dataclass is a dataclass, its fields without their limits."""

    def on_class_members(self, *, cls: griffe.Class, **_: Any) -> None:
        for decorator in cls.decorators:
            value = decorator.value
            if getattr(value, "canonical_path", "") == "pydantic.dataclasses.dataclass":
                decorator.value = griffe.ExprName("dataclasses.dataclass")  # griffe knows this one
        for member in cls.members.values():
            annotation = getattr(member, "annotation", None)
            if isinstance(annotation, griffe.ExprSubscript) and str(annotation.left) == "Annotated":
                member.annotation = annotation.slice.elements[0]
