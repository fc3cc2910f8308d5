"""Search Report."""

from __future__ import annotations

import json

from comfy_api.latest import io, ui

from ..host.pictures import to_image
from ..report.charts import score_curve
from ..report.contact_sheet import contact_sheet
from ..report.table import table
from . import types


class SearchReport(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="NoiseSearchReport",
            display_name="Search Report",
            category=types.CATEGORY,
            description="Shows what a search did: the score curve, all candidates from best to worst, and the numbers.",
            search_aliases=["score curve", "contact sheet"],
            is_output_node=True,
            inputs=[types.SearchLog.Input("log", tooltip="The log of Search KSampler or Search Sampler (Advanced).")],
            outputs=[
                io.Image.Output(display_name="score_curve", tooltip="Best score so far against compute spent."),
                io.Image.Output(display_name="contact_sheet", tooltip="The candidates, best first, with their scores."),
                io.String.Output(display_name="table", tooltip="Every candidate in numbers."),
            ],
        )

    @classmethod
    def execute(cls, log) -> io.NodeOutput:
        pictures = [to_image(score_curve(log)), to_image(contact_sheet(log))]
        shown = [entry for picture in pictures for entry in ui.PreviewImage(picture, cls=cls).as_dict()["images"]]
        return io.NodeOutput(
            *pictures, table(log), ui={"images": shown, "noise_search_report": [json.dumps(log.to_dict())]}
        )


NODES = [SearchReport]
