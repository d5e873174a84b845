"""HTML pages with charts: one style, one file, no scripts, no network."""

from __future__ import annotations

import base64
import importlib.util
import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import jinja2
from PIL import Image as PillowImage

from swav_tf.plumbing.errors import UsageError
from swav_tf.plumbing.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH: Final = 5.2  # inches: 9-point text is readable at the width of a phone

# Placeholders that become variables of the page's style, so that charts follow its light and dark colors.
INK, FAINT, RULE = "#0f0e01", "#0f0e02", "#0f0e03"
SERIES: Final = [f"#0f0e1{number}" for number in range(8)]
VARIABLES: Final = {INK: "ink", FAINT: "faint", RULE: "rule"} | {c: f"s{n}" for n, c in enumerate(SERIES)}
STYLE: Final[Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "swav-tf", "font.size": 9, "text.color": INK, "axes.labelcolor": FAINT,
    "axes.edgecolor": RULE, "xtick.color": FAINT, "ytick.color": FAINT, "grid.color": RULE, "axes.grid": True,
    "axes.axisbelow": True, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
}  # fmt: skip


def check_matplotlib() -> None:
    """Refuse to write a report without matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError(
            "An HTML report needs matplotlib, which is not installed. Run: pip install 'swav-tf[report]'"
        )


def write_page(path: Path, template: str, **values: Any) -> None:
    """Write a page; `template` is a file of this folder that extends page.html.jinja."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["data_uri"] = data_uri
    page = environment.get_template(template).render(values)
    with atomic_write(path) as partial:
        partial.write_text(page, encoding="utf-8")


def data_uri(picture: PillowImage.Image) -> str:
    """Return the picture as a `data:` URI, PNG or JPEG, whichever is smaller."""
    encoded = []
    for name, options in (("png", {"optimize": True}), ("jpeg", {"quality": 88})):
        buffer = io.BytesIO()
        picture.save(buffer, name, **options)
        encoded.append((len(buffer.getvalue()), name, buffer.getvalue()))
    _, name, data = min(encoded)
    return f"data:image/{name};base64,{base64.b64encode(data).decode()}"


def new_axes(height: float) -> tuple[Figure, Axes]:
    """Return a figure of this height, inches, and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height))
    return figure, figure.subplots()


def add_legend(figure: Figure, axes: Axes) -> None:
    """Put a legend of two columns below the axes."""
    figure.legend(*axes.get_legend_handles_labels(), loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=2)


def inline_svg(figure: Figure, label: str) -> str:
    """Return a figure as inline SVG without identifiers, metadata and fixed colors."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"|(?<=<g) id="[^"]*"', "", text)
    text = re.sub("|".join(VARIABLES), lambda found: f"var(--{VARIABLES[found[0]]})", text)
    return text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
