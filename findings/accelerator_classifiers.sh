#!/usr/bin/env bash
# comfy-cli 1.23.0 (publishes node packs to the Comfy registry) and PyPI's trove-classifiers 2026.9.21.13:
# the two know ONE accelerator classifier in common, "Environment :: GPU :: NVIDIA CUDA". A pack that also says the
# valid PyPI classifier "Environment :: GPU" is published with NO accelerator at all: one that comfy-cli does not know
# empties the whole list, CUDA too, with a warning and exit 0. In turn "Environment :: GPU :: AMD ROCm",
# "... :: Intel Arc" and "... :: Apple Metal", which the registry asks for, are none of PyPI's.
# Exits non-zero if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet comfy-cli==1.23.0 trove-classifiers==2026.9.21.13
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
from comfy_cli.registry.config_parser import validate_and_extract_accelerator_classifiers as accelerators
from trove_classifiers import classifiers as pypi

cuda, gpu = "Environment :: GPU :: NVIDIA CUDA", "Environment :: GPU"
others = [f"Environment :: GPU :: {name}" for name in ("AMD ROCm", "Intel Arc", "Apple Metal")]
print("CUDA alone:    ", accelerators([cuda]))
print("CUDA and GPU:  ", accelerators([gpu, cuda]))
print("GPU is PyPI's: ", gpu in pypi, "; of the registry's others PyPI has:", [name for name in others if name in pypi])
assert accelerators([cuda]) == ["GPU :: NVIDIA CUDA"]
assert len(accelerators([cuda, *others])) == 4
assert accelerators([gpu, cuda]) == [] and {gpu, cuda} <= set(pypi)
assert not set(others) & set(pypi)
PYTHON
