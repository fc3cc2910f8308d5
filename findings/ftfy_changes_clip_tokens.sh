#!/usr/bin/env bash
# transformers 4.57.6 with ftfy 6.3.1: installing ftfy, on which open_clip_torch and many ComfyUI packs depend, changes
# what transformers' CLIPTokenizer makes of the same text, and with it every picture that ComfyUI draws from such a
# prompt: ComfyUI's CLIP-L and CLIP-G prompts go through this class. CLIPTokenizer runs ftfy.fix_text when it can be
# imported, and a splitter of its own otherwise. Seen, number of tokens without -> with ftfy, in a vocabulary of
# single bytes: "red" in curly quotes 9 -> 5 (they become straight ones), O'Brien with a curly apostrophe 9 -> 7, "Red"
# in full-width letters 9 -> 3. Plain ASCII is the same. transformers 5.24.0 gives the same with and without ftfy.
# Exits non-zero if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip="$folder/venv/bin/pip"
"$pip" install --quiet --target "$folder/4" transformers==4.57.6
"$pip" install --quiet --target "$folder/5" transformers==5.24.0
"$pip" install --quiet --target "$folder/more" ftfy==6.3.1
cat > "$folder/tokens.py" <<'PYTHON'
import json
import pathlib
import sys
import tempfile

from transformers import CLIPTokenizer

# A vocabulary of single bytes: each byte as the tokenizer writes it, and the same at a word's end.
plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
letters = [chr(byte) for byte in plain] + [chr(256 + n) for n in range(256 - len(plain))]
words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
folder = pathlib.Path(tempfile.mkdtemp(dir=sys.argv[1]))
(folder / "vocab.json").write_text(json.dumps({word: n for n, word in enumerate(words)}), encoding="utf-8")
(folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
tokenizer = CLIPTokenizer.from_pretrained(str(folder))
texts = ["a red circle", "\u201cred\u201d", "O\u2019Brien", "\uff32\uff45\uff44", "\u65e5\u672c\u8a9e\u306e\u6587\u5b57"]
print(json.dumps([tokenizer.tokenize(text) for text in texts]))
PYTHON
for version in 4 5; do
    PYTHONPATH="$folder/$version" "$folder/venv/bin/python" -W ignore "$folder/tokens.py" "$folder" > "$folder/$version-without" 2> "$folder/log" || { cat "$folder/log"; exit 1; }
    PYTHONPATH="$folder/$version:$folder/more" "$folder/venv/bin/python" -W ignore "$folder/tokens.py" "$folder" > "$folder/$version-with" 2> "$folder/log" || { cat "$folder/log"; exit 1; }
done
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import json
import pathlib
import sys

read = lambda name: json.loads(pathlib.Path(sys.argv[1], name).read_text())
for version in "45":
    print(f"transformers {version}:", [f"{len(a)} -> {len(b)}" for a, b in zip(read(f"{version}-without"), read(f"{version}-with"))])
without, with_it = read("4-without"), read("4-with")
assert without[0] == with_it[0], "plain text"
assert all(a != b for a, b in zip(without[1:4], with_it[1:4])), "quotes, apostrophe, full width"
assert read("5-without") == read("5-with")
PYTHON
