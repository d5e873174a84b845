"""Text below a picture, cut to its width. No TensorFlow."""

from __future__ import annotations

from PIL import ImageFont


def shortened(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """The end of a text that fits into `width` pixels, in characters that can be drawn; "..." where nothing fits."""
    text = text.encode("utf-8", "replace").decode()
    if font.getlength(text) <= width:
        return text
    while text and font.getlength("..." + text) > width:
        text = text[1:]
    return "..." + text
