"""Draw a labelled set of images for `benchmarks.auto_study`: the capital letters of the fonts on this machine.

    python -m benchmarks.glyphs FOLDER [--families 150] [--size 48]

Writes FOLDER/A/ to FOLDER/Z/: one gray PNG a letter of each family, all letters of a family from one of its fonts.
Fonts are found by fontconfig's `fc-list`; a fixed seed draws families and fonts.
"""

from __future__ import annotations

import random
import string
import subprocess
from collections import defaultdict
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from benchmarks.common import documented_parser

LETTERS = string.ascii_uppercase
DINGBATS = {"D050000L"}  # states that it has the letters of English


def installed_fonts() -> dict[str, list[str]]:
    """Return the files of every family that has the letters of English."""
    command = ["fc-list", ":lang=en:scalable=true", "--format", "%{family[0]}\t%{file}\n"]
    families = defaultdict(list)
    for line in sorted(
        subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    ):
        family, file = line.split("\t")
        if family not in DINGBATS:
            families[family].append(file)
    return families


def draw(letter: str, font: ImageFont.FreeTypeFont, size: int) -> Image.Image:
    """Return a letter in black in the middle of a white image."""
    image = Image.new("L", (size, size), 255)
    left, top, right, bottom = font.getbbox(letter)
    place = (size - left - right) / 2, (size - top - bottom) / 2
    ImageDraw.Draw(image).text(place, letter, font=font, fill=0)
    return image


def main() -> None:
    parser = documented_parser(__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--families", type=int, default=150)
    parser.add_argument("--size", type=int, default=48, help="pixels of a side")
    options = parser.parse_args()
    draws, families = random.Random(0), installed_fonts()
    for family in draws.sample(sorted(families), options.families):
        font = ImageFont.truetype(draws.choice(families[family]), round(0.8 * options.size))
        for letter in LETTERS:
            path = options.folder / letter / f"{family.replace('/', '-')}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            draw(letter, font, options.size).save(path)


if __name__ == "__main__":
    main()
