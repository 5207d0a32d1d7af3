"""Notebooks as pages: executed by their own kernel when the site is built, then written as Markdown."""

from __future__ import annotations

import html
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

# Set to 0, notebooks are shown as they are written, without outputs.
EXECUTE = "COVARY_EXECUTE"


def on_files(files: Files, config: Any) -> Files:
    """A page in place of every notebook."""
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        notebook = json.loads(Path(file.abs_src_path).read_text(encoding="utf-8"))
        if os.environ.get(EXECUTE, "1") != "0":
            notebook = executed(notebook)
        files.remove(file)
        files.append(File.generated(config, file.src_uri.replace(".ipynb", ".md"), content=page(notebook)))
    return files


def executed(notebook: dict[str, Any]) -> dict[str, Any]:
    """The notebook after running it from top to bottom in a folder of its own; an error in a cell ends the build."""
    import nbformat
    from nbclient import NotebookClient

    with tempfile.TemporaryDirectory() as folder:
        # Sources may stand as lists of lines, which `from_dict` would leave.
        read = nbformat.reads(json.dumps(notebook), as_version=4)
        NotebookClient(read, timeout=300, kernel_name="python3", resources={"metadata": {"path": folder}}).execute()
    return read


def page(notebook: dict[str, Any]) -> str:
    """A notebook as Markdown: text as it is, code in fences, outputs below."""
    parts: list[str] = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
        elif cell["cell_type"] == "code":
            parts.append(f"```python\n{source}\n```")
            parts += [shown for output in cell["outputs"] if (shown := output_of(output))]
    return "\n\n".join(parts) + "\n"


def output_of(output: dict[str, Any]) -> str:
    """One output: HTML or a picture where there is one, else its text."""
    if output["output_type"] == "stream":
        return fenced("".join(output["text"])) if output["name"] == "stdout" else ""
    data = output.get("data", {})
    if "text/html" in data:
        return re.sub(r"\n\s*\n", "\n", "".join(data["text/html"]))
    if "image/png" in data:
        picture = "".join(data["image/png"]).replace("\n", "")
        return f'<img alt="{html.escape("".join(data.get("text/plain", "")))}" src="data:image/png;base64,{picture}">'
    return fenced("".join(data["text/plain"])) if "text/plain" in data else ""


def fenced(text: str) -> str:
    """Text in a fence that it cannot close."""
    ticks = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{ticks}text\n{text.rstrip()}\n{ticks}"
