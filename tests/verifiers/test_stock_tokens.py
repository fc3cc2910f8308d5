"""What the README says of ftfy, which open_clip_torch brings: ComfyUI's own tokens with and without it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import transformers

pytestmark = pytest.mark.skipif("COMFYUI_PATH" not in os.environ, reason="needs ComfyUI's tokenizer")

UNTOUCHED = ["a red circle", 'it\'s a "quoted" word', "café naïve", "a—b … c", "猫 cat", "한국어", "(word:1.2)"]
MENDED = ["a “quoted” word", "O’Brien", "Ｆｕｌｌ ｗｉｄｔｈ", "ﬁne ligature", "一只猫坐在", "日本語の文字", "x\u200by"]
SCRIPT = """
import json, sys
if sys.argv[1] == "without":
    sys.modules["ftfy"] = None  # as if it were not installed
else:
    import ftfy
from transformers import CLIPTokenizer
tokenizer = CLIPTokenizer.from_pretrained(sys.argv[2])
print(json.dumps([tokenizer(text).input_ids for text in json.loads(sys.argv[3])]))
"""


def tokens(ftfy):
    """In a process of its own: the tokenizer looks for ftfy when it is made."""
    files = os.path.join(os.environ["COMFYUI_PATH"], "comfy", "sd1_tokenizer")
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, ftfy, files, json.dumps([*UNTOUCHED, *MENDED])]
    run = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=True)
    return json.loads(run.stdout)


def test_only_an_old_transformers_takes_notice_of_ftfy():
    before, after = tokens("without"), tokens("with")
    changed = [text for text, old, new in zip([*UNTOUCHED, *MENDED], before, after, strict=True) if old != new]
    assert changed == (MENDED if transformers.__version__.startswith("4.") else [])
