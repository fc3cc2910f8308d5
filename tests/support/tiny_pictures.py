"""A folder of pictures in the style of the demo's world, for the example that scores one."""

from pathlib import Path

from PIL import Image, ImageDraw

BACKGROUND, RED, BLUE, GREEN = "#f2f0eb", "#d62828", "#1d5fd0", "#2a9d3a"
SCENES = (  # circle and square: colour, middle
    ((BLUE, 64, 40), (RED, 64, 92)),
    ((RED, 64, 40), (BLUE, 64, 92)),
    ((RED, 36, 64), (GREEN, 92, 64)),
)


def save_pictures(folder: Path) -> None:
    """A 128x128 PNG of each scene."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, ((circle, x, y), (square, left, top)) in enumerate(SCENES):
        picture = Image.new("RGB", (128, 128), BACKGROUND)
        draw = ImageDraw.Draw(picture)
        draw.ellipse((x - 16, y - 16, x + 16, y + 16), fill=circle)
        draw.rectangle((left - 16, top - 16, left + 16, top + 16), fill=square)
        picture.save(folder / f"{number}.png")
