"""Documents that lead somewhere: links between them, and sections that docstrings cite."""

import re
from pathlib import Path

import pytest

import swav_tf

ROOT = Path(__file__).parent.parent
PACKAGES = ("benchmarks", "cli", "configs", "evaluate", "export", "swav_tf")
ALIASES = {f"swav_tf.training.classify.{name}" for name in ("probe", "finetune")}  # of `train_classifier`
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
    listed = set(re.findall(r"^::: (\S+)$", reference, re.MULTILINE))
    assert {f"{home}.{name}" for name, home in swav_tf._HOMES.items()} - ALIASES <= listed
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert [name for name in DOCUMENTS if str(name.relative_to(ROOT)) not in menu] == []
