"""ComfyUI nodes for the tests only: a list of prompts and a wildcard. Linked into a test server's custom_nodes."""

import itertools


class Texts:
    """A prompt list: what is behind it runs once per line."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"text": ("STRING", {"multiline": True})}})
    RETURN_TYPES = ("STRING",)
    OUTPUT_IS_LIST = (True,)
    FUNCTION = "run"
    CATEGORY = "tests"

    def run(self, text):
        return (text.split("\n"),)


class Wildcard:
    """Another line at each run, in turn, with the same graph."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"text": ("STRING", {"multiline": True})}})
    RETURN_TYPES = ("STRING",)
    FUNCTION = "run"
    CATEGORY = "tests"
    turns = itertools.count()

    @classmethod
    def IS_CHANGED(cls, text):
        return float("nan")

    def run(self, text):
        lines = text.split("\n")
        return (lines[next(self.turns) % len(lines)],)


NODE_CLASS_MAPPINGS = {"NoiseSearchTestTexts": Texts, "NoiseSearchTestWildcard": Wildcard}
