"""Search Report."""

from __future__ import annotations

import json

from comfy_api.latest import io, ui

from ..host.pictures import to_image
from ..report.canvas import THEMES
from ..report.charts import score_curve
from ..report.contact_sheet import contact_sheet
from ..report.table import table, to_csv
from . import types

AXES = {"NFE": "nfe", "seconds": "seconds", "both": "both"}


class SearchReport(types.Node):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="NoiseSearchReport",
            display_name="Search Report",
            category=types.CATEGORY,
            description="Shows what a search did: the score curve, all candidates from best to worst, and the numbers.",
            search_aliases=["score curve", "contact sheet"],
            is_output_node=True,
            inputs=[
                types.SearchLog.Input("log", tooltip="The log of Search KSampler or Search Sampler (Advanced)."),
                # Optional, so that workflows of before these inputs still run.
                io.Combo.Input(
                    "theme", options=list(THEMES), default="light", optional=True, tooltip="Colours of the pictures."
                ),
                io.Combo.Input(
                    "axis",
                    options=list(AXES),
                    default="both",
                    optional=True,
                    tooltip="What the score curve counts as spent: evaluations of the model (NFE), seconds, or both.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="score_curve", tooltip="Best score so far against compute spent."),
                io.Image.Output(display_name="contact_sheet", tooltip="The candidates, best first, with their scores."),
                io.String.Output(display_name="table", tooltip="Every candidate in numbers."),
                io.String.Output(
                    display_name="csv", tooltip="All numbers with all their digits, for a spreadsheet or a program."
                ),
            ],
        )

    @classmethod
    def execute(cls, log, theme="light", axis="both") -> io.NodeOutput:
        pictures = [to_image(score_curve(log, theme, AXES[axis])), to_image(contact_sheet(log, theme))]
        shown = [entry for picture in pictures for entry in ui.PreviewImage(picture, cls=cls).as_dict()["images"]]
        return io.NodeOutput(
            *pictures,
            table(log),
            to_csv(log),
            ui={"images": shown, "noise_search_report": [json.dumps(log.to_dict())]},
        )


NODES = [SearchReport]
