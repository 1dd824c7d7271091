"""What `make docs` adds to the site: README, CONTRIBUTING and CHANGELOG, notebooks, and linked source files.

Pages are written to be read on GitHub too, so they link to files by their place in the repository. Here such a link
becomes one within the site: to the page of a document, or to a page that shows a source file.
"""

import ast
import posixpath
import re
from pathlib import Path

import jupytext
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
DOCUMENTS = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Documents outside docs/, and what they are called in the site."""

NOTEBOOKS = {path.name: f"notebooks/{path.stem}.md" for path in sorted((ROOT / "docs" / "notebooks").glob("*.py"))}

LINK = re.compile(r"(\]\()([^)#:\s]+)((?:#[^)\s]*)?\))")


def in_site(target: str) -> str:
    """Where the site shows a file of the repository: its own place, a document's page, or a page of source."""
    if target in DOCUMENTS:
        return DOCUMENTS[target]
    if target.startswith("docs/notebooks/") and target.endswith(".py"):
        return NOTEBOOKS[target.removeprefix("docs/notebooks/")]
    if target.startswith("docs/") and not target.endswith(".py"):
        return target.removeprefix("docs/")
    return f"source/{target}.md"


def relink(markdown: str, source: str) -> tuple[str, set[str]]:
    """A document with its links led into the site, and the files of the repository that it links to.

    Args:
        markdown: the document's text.
        source: its place in the repository, such as docs/data.md.
    """
    targets = set()
    page_folder = posixpath.dirname(in_site(source))

    def lead(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[2]))
        if not (ROOT / target).is_file():
            return match[0]  # mkdocs names what leads nowhere
        targets.add(target)
        return match[1] + posixpath.relpath(in_site(target), page_folder or ".") + match[3]

    parts = re.split(r"(^```.*?^```$)", markdown, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if part.startswith("```") else LINK.sub(lead, part) for part in parts), targets


def source_page(target: str) -> str:
    """A page that shows a file of the repository."""
    text = (ROOT / target).read_text(encoding="utf-8")
    return f"# {target}\n\n`````{'python' if target.endswith('.py') else 'text'}\n{text}\n`````\n"


def notebook_page(path: Path) -> str:
    """A notebook that is kept as a script in jupytext's percent format, as markdown."""
    markdown: str = jupytext.writes(jupytext.read(path, fmt="py:percent"), fmt="md")
    return re.sub(r"\A---\n.*?^---\n", "", markdown, flags=re.MULTILINE | re.DOTALL)  # jupytext's own header


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made from other files, and lead the links of all pages into the site."""
    pages = {name: (ROOT / name).read_text(encoding="utf-8") for name in DOCUMENTS}
    pages |= {f"docs/notebooks/{name}": notebook_page(ROOT / "docs" / "notebooks" / name) for name in NOTEBOOKS}
    pages |= {f"docs/{file.src_uri}": file.content_string for file in files.documentation_pages()}
    linked: set[str] = set()
    for source, text in pages.items():
        text, targets = relink(text, source)
        linked |= targets
        place = in_site(source)
        if (old := files.get_file_from_path(place)) is not None:
            files.remove(old)
        files.append(File.generated(config, place, content=text))
    for target in sorted(linked):
        place = in_site(target)
        if place.startswith("source/"):
            files.append(File.generated(config, place, content=source_page(target)))
    return files


def on_post_build(config: MkDocsConfig) -> None:
    """Every public name has its place in the reference."""
    for package in ("dt", "envs", "transformer"):
        page = (Path(config.site_dir) / "reference" / f"{package}.html").read_text(encoding="utf-8")
        names = public_names((ROOT / package / "__init__.py").read_text(encoding="utf-8"))
        missing = [name for name in names if f'id="{package}.{name}"' not in page]
        if missing or not names:
            raise PluginError(f"docs/reference/{package}.md lacks {', '.join(missing) or 'every name'}")


def public_names(source: str) -> list[str]:
    """The names in `__all__` of a module's source."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names: list[str] = ast.literal_eval(node.value)
            return names
    return []
