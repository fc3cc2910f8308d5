"""Makes the pictures of the example workflows: each is run in the real front end and photographed.

COMFYUI_PATH=/path/to/ComfyUI python tests/picture_workflows.py
"""

import json
import os
import tempfile
from io import BytesIO
from pathlib import Path

import frontend
from comfy_server import PACK, ComfyServer
from PIL import Image

WINDOW = (1680, 920)
CLIP = {"x": 60, "y": 110, "width": 1620, "height": 710}  # the graph, without the menus around it
PLACE = "() => { const c = app.canvas; c.ds.scale = 0.8; c.ds.offset = [65, 110]; c.setDirty(true, true) }"
LARGEST = 190 * 1024  # bytes of a picture


def photograph(page: frontend.FrontEnd) -> Image.Image:
    page.page.evaluate(PLACE)
    page.page.wait_for_timeout(2000)
    with Image.open(BytesIO(page.page.screenshot(clip=CLIP, timeout=180_000))) as shot:
        return shot.convert("RGB")


def save(picture: Image.Image, path: Path) -> None:
    """As JPEG, in the best quality that keeps it small."""
    for quality in range(88, 40, -6):
        picture.save(path, quality=quality, optimize=True)
        if path.stat().st_size <= LARGEST:
            return


def main() -> None:
    """Runs and photographs every example."""
    home = Path(tempfile.mkdtemp())
    with ComfyServer(Path(os.environ["COMFYUI_PATH"]), home) as server, frontend.browser() as running:
        for file in sorted((PACK / "example_workflows").glob("*.json")):
            page = frontend.FrontEnd(running, server.url, *WINDOW)
            page.load(json.loads(file.read_text("utf-8")))
            page.page.evaluate("() => { app.queuePrompt(0, 1) }")
            page.page.wait_for_timeout(3000)
            while any(server.get("/queue").values()):
                page.page.wait_for_timeout(1000)
            page.page.wait_for_timeout(9000)  # the last messages, and until the notice of the end is gone
            save(photograph(page), file.with_suffix(".jpg"))
            page.page.close()


if __name__ == "__main__":
    main()
