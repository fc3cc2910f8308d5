"""Verifier Ensemble and Verifier Gate."""

from __future__ import annotations

from comfy_api.latest import io

from ..search.judges import COMBINE, combined, gated
from . import types

PLACES = 4
STOP, DROP = FAILED = ("stop with an error", "drop it")


class Ensemble(types.Node):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="NoiseSearchVerifierEnsemble",
            display_name="Verifier Ensemble",
            category=types.CATEGORY,
            description=(
                "Several verifiers as one: they choose together, by mean rank, z-score or weighted sum. A verifier of "
                "weight 0 only reports: a second opinion that shows whether the search fools the first."
            ),
            search_aliases=["ensemble", "combine", "rank", "report only", "held out"],
            inputs=[
                io.Combo.Input(
                    "combine",
                    options=list(COMBINE),
                    default=COMBINE[0],
                    tooltip=(
                        "How the verifiers choose together. Mean rank asks only who is better and needs no scales; "
                        "z-score also how much better; weighted sum adds the raw scores."
                    ),
                ),
                *(item for place in range(1, PLACES + 1) for item in _place(place)),
                io.Combo.Input(
                    "failed_verifier",
                    options=list(FAILED),
                    default=STOP,
                    optional=True,
                    advanced=True,
                    tooltip="What to do when a verifier fails. Dropped, it no longer counts in the whole search, which "
                    "node, report and log say, and the others go on. The last one that decides always stops it.",
                ),
            ],
            outputs=[types.verifier_output()],
        )

    @classmethod
    def execute(cls, combine, failed_verifier=STOP, **places) -> io.NodeOutput:
        verifiers = []
        for place in range(1, PLACES + 1):
            verifier = places.get(f"verifier_{place}")
            if verifier is not None:
                verifiers.append((verifier, places.get(f"weight_{place}", 1.0)))
        return io.NodeOutput(combined(verifiers, combine, failed_verifier == DROP))


class Gate(types.Node):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="NoiseSearchVerifierGate",
            display_name="Verifier Gate",
            category=types.CATEGORY,
            description=(
                "Gives a verifier a veto: an image that it scores below the limit loses to every image that passes, "
                "whatever other verifiers say. Put it between a verifier and Verifier Ensemble, or use it alone."
            ),
            search_aliases=["threshold", "veto", "minimum score", "at least"],
            inputs=[
                types.Verifier.Input("verifier", tooltip="One verifier, such as Aesthetic Score."),
                io.Float.Input(
                    "at_least",
                    default=0.0,
                    min=-1e6,
                    max=1e6,
                    step=0.01,
                    round=0.0001,
                    tooltip="The lowest score that passes, in the verifier's own numbers: run a search first and see "
                    "in Search Report what it gives. To veto only, set its weight in the ensemble to 0.",
                ),
            ],
            outputs=[types.Verifier.Output(display_name="verifier", tooltip="For Verifier Ensemble, search nodes.")],
        )

    @classmethod
    def execute(cls, verifier, at_least) -> io.NodeOutput:
        return io.NodeOutput(gated(verifier, at_least))


def _place(place: int) -> list[io.Input]:
    return [
        types.Verifier.Input(
            f"verifier_{place}",
            optional=place > 1,
            tooltip="A verifier, or another ensemble, whose verifiers then count here with its weight.",
        ),
        io.Float.Input(
            f"weight_{place}",
            default=1.0,
            min=0.0,
            max=1000.0,
            step=0.01,
            round=0.001,
            optional=place > 1,
            tooltip="How much it counts. 0: it only reports, in Search Report as a dashed line.",
        ),
    ]


NODES = [Ensemble, Gate]
