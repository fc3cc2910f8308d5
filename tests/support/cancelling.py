"""Cancel at a given moment of a search."""

import comfy.model_management as mm
from noise_search.host.sampling.stock import Sampling


class CancellingVerifier:
    """Presses Cancel while candidate `at` is being scored."""

    members = ("red",)
    needs_prompt = False
    usual_range = (0.0, 1.0)

    def __init__(self, at: int):
        self.at = at
        self.scored = 0

    def score(self, images, prompts):
        if self.scored == self.at:
            mm.interrupt_current_processing(True)
        self.scored += 1
        return images[..., 0].float().mean(dim=(1, 2)).reshape(-1, 1)


def cancel_at_call(sampling: Sampling, call: int):
    """Presses Cancel inside the model call number `call`."""
    predict = sampling.guider.predict_noise
    calls = []

    def predict_noise(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            mm.interrupt_current_processing(True)
        return predict(*args, **kwargs)

    sampling.guider.predict_noise = predict_noise
    return calls
