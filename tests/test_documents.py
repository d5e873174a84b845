"""Documents that lead somewhere: links between them, and sections that docstrings cite."""

import re
from pathlib import Path

import click
import pytest

import swav_tf
from cli.main import swav_tf as program

ROOT = Path(__file__).parent.parent
PACKAGES = ("benchmarks", "cli", "configs", "evaluate", "export", "swav_tf")
ALIASES = {"probe", "finetune"}  # of `train_classifier`
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("deploy/*.md")])


def headings(document: Path) -> list[str]:
    return re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)


def anchor(heading: str) -> str:
    """What a heading is called in a link, as on GitHub."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


# Bug caught: a docstring that cites a document that is not here, or a section that was renamed.
def test_sections_that_code_cites_are_there() -> None:
    cited = {
        found
        for package in PACKAGES
        for file in (ROOT / package).rglob("*.py")
        for found in re.findall(r'(docs/\w+\.md), "([^"]+)"', file.read_text(encoding="utf-8"))
    }
    assert ("docs/algorithm.md", "One step") in cited
    assert [(name, title) for name, title in sorted(cited) if title not in headings(ROOT / name)] == []


# Bugs caught: a link to a page or a section that was moved; a page that nobody finds from the README.
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8")):
        if re.match(r"https?:|mailto:", link):
            continue
        name, _, section = link.partition("#")
        target = document.parent / name if name else document
        inside = target.resolve().is_relative_to(ROOT) and target.exists()
        if not inside or (section and section not in map(anchor, headings(target))):
            broken.append(link)
    assert broken == []


def test_the_readme_leads_to_every_page() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in sorted(ROOT.glob("docs/*.md")) if f"](docs/{path.name})" not in text] == []


# Bugs caught: a public name without reference, or a reference to a name that was moved; a page that the site's menu leaves out.
def test_the_site_has_every_public_name_and_page() -> None:
    reference = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    listed = re.findall(r"^::: (\S+)\.(\w+)$", reference, re.MULTILINE)
    assert set(swav_tf._HOMES) - ALIASES <= {name for _, name in listed}
    for module, name in listed:
        place = ROOT / module.replace(".", "/")
        source = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
        assert re.search(rf"^(class|def) {name}\b", source.read_text(encoding="utf-8"), re.MULTILINE), name
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert [name for name in DOCUMENTS if str(name.relative_to(ROOT)) not in menu] == []


def commands_of(text: str) -> list[str]:
    """Commands in code spans, indented lines, consoles and headers of recipes, without `swav-tf`."""
    text = re.sub(r"\\\n#?\s*", "", text)
    code = re.findall(r"^(?: {4}|\$ |# Command).*$|`[^`\n]+`", text, re.MULTILINE)
    return [words for line in code for words in re.findall(r"\bswav-tf ([a-z][^#`\n]*)", line)]


def unknown_options(words: str) -> list[str]:
    """Return the options of a command line that the command does not have; [name] if there is no such command."""
    command: click.Command | None = program
    context = click.Context(program)
    for name in words.split():
        if not isinstance(command, click.Group):
            break
        command = command.get_command(context, name)
    if command is None:
        return [words]
    known = {option for each in command.params for option in (*each.opts, *each.secondary_opts)} | {"--help"}
    return [option for option in re.findall(r"(?<!\S)--?[a-z][\w-]*", words) if option not in known]


# Bug caught: a command in a document, a recipe or a help text that was removed, or has an option that was.
@pytest.mark.parametrize("folder", [".", "docs", "configs", "cli/commands"])
def test_documented_commands_and_options_exist(folder: str) -> None:
    files = [path for ending in ("md", "yaml", "py") for path in sorted((ROOT / folder).glob(f"*.{ending}"))]
    found = {
        (path.name, words): unknown
        for path in files
        if path.name != "CHANGELOG.md"
        for words in commands_of(path.read_text(encoding="utf-8"))
        if (unknown := unknown_options(words))
    }
    assert found == {}
