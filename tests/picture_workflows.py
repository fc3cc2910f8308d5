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

SIZE = (1900, 1000)
WIDTH = 1100  # of the picture
# The graph alone, in the middle of the page.
FIT = "() => { const c = app.canvas; c.ds.scale = 0.9; c.ds.offset = [-20, -30]; c.setDirty(true, true) }"
HIDE = ".side-tool-bar-container, .comfyui-body-top, .p-panel, .minimap-main-container { display: none !important }"


def photograph(page: frontend.FrontEnd) -> Image.Image:
    page.page.add_style_tag(content=HIDE)
    page.page.evaluate(FIT)
    page.page.wait_for_timeout(2000)
    with Image.open(BytesIO(page.page.screenshot(timeout=180_000))) as shot:
        return shot.convert("RGB")


def main() -> None:
    """Runs and photographs every example."""
    home = Path(tempfile.mkdtemp())
    with ComfyServer(Path(os.environ["COMFYUI_PATH"]), home) as server, frontend.browser() as running:
        for file in sorted((PACK / "example_workflows").glob("*.json")):
            page = frontend.FrontEnd(running, server.url, *SIZE)
            page.load(json.loads(file.read_text("utf-8")))
            page.page.evaluate("() => app.queuePrompt(0, 1)")
            page.page.wait_for_timeout(1000)
            while any(server.get("/queue").values()):
                page.page.wait_for_timeout(1000)
            picture = photograph(page)
            picture.thumbnail((WIDTH, WIDTH))
            picture.save(file.with_suffix(".jpg"), quality=82, optimize=True)
            page.page.close()


if __name__ == "__main__":
    main()
