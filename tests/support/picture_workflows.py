"""Makes the pictures of the example workflows: each is run in the real front end and photographed.

COMFYUI_PATH=/path/to/ComfyUI python tests/support/picture_workflows.py [part of a name]
"""

import json
import os
import sys
import tempfile
from io import BytesIO
from itertools import chain
from pathlib import Path

import frontend
from comfy_server import FOLDER, PACK, ComfyServer
from examples import NEED_FILES
from PIL import Image
from tiny_pictures import save_pictures

WINDOW = (1780, 1000)
SCALE = 0.8  # pixels of the picture for one of the graph
CORNER = (70, 110)  # where the graph begins in the window, right of and below the menus
PLACE = "([s, x, y]) => { const c = app.canvas; c.ds.scale = s; c.ds.offset = [x, y]; c.setDirty(true, true) }"
ABOVE, AROUND = 64, 20  # a node's title and badge; the margin
LARGEST = 190 * 1024  # bytes of a picture


def photograph(page: frontend.FrontEnd, nodes: list[dict]) -> Image.Image:
    """The part of the window where the nodes are, without the menus around it."""
    left = min(node["pos"][0] for node in nodes) - AROUND
    top = min(node["pos"][1] for node in nodes) - ABOVE
    right = max(node["pos"][0] + node["size"][0] for node in nodes) + AROUND
    bottom = max(node["pos"][1] + node["size"][1] for node in nodes) + AROUND
    x, y = CORNER
    page.page.evaluate(PLACE, [SCALE, x / SCALE - left, y / SCALE - top])
    page.page.wait_for_timeout(2000)
    clip = {"x": x, "y": y, "width": (right - left) * SCALE, "height": (bottom - top) * SCALE}
    with Image.open(BytesIO(page.page.screenshot(clip=clip, timeout=180_000))) as shot:
        return shot.convert("RGB")


def save(picture: Image.Image, path: Path) -> None:
    """As JPEG, in the best quality that keeps it small."""
    for quality in range(88, 40, -6):
        picture.save(path, quality=quality, optimize=True)
        if path.stat().st_size <= LARGEST:
            return


def main() -> None:
    """Runs and photographs every example, or those whose names hold what is given."""
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    home = Path(tempfile.mkdtemp())
    save_pictures(home / "input" / FOLDER)
    for name in chain(*NEED_FILES.values()):  # by name, so that the examples show no errors
        path = home / "models" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    with ComfyServer(Path(os.environ["COMFYUI_PATH"]), home) as server, frontend.browser() as running:
        for file in sorted((PACK / "example_workflows").glob(f"*{wanted}*.json")):
            page = frontend.FrontEnd(running, server.url, *WINDOW)
            workflow = json.loads(file.read_text("utf-8"))
            page.load(workflow)
            if file.stem in NEED_FILES:  # photographed as it is
                page.page.wait_for_timeout(3000)
                save(photograph(page, workflow["nodes"]), file.with_suffix(".jpg"))
                page.page.close()
                continue
            page.page.evaluate("() => { app.queuePrompt(0, 1) }")
            page.page.wait_for_timeout(3000)
            while any(server.get("/queue").values()):
                page.page.wait_for_timeout(1000)
            page.page.wait_for_timeout(9000)  # the last messages, and until the notice of the end is gone
            save(photograph(page, workflow["nodes"]), file.with_suffix(".jpg"))
            page.page.close()


if __name__ == "__main__":
    main()
