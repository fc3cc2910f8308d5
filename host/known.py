"""Every name of ComfyUI, and of packs, that decides something here: the one file to read for a new ComfyUI.

What can be found out is not in it (samplers are tried, sockets are asked for their types). Needs no ComfyUI itself:
classes are given by name. tests/host/test_known.py says which nodes of a ComfyUI are new and which classes are gone,
tests/host/memory/test_machine.py which options are new.
"""

from __future__ import annotations

import re

# Nodes that change how a model is sampled, by what they do to the items of a batch. To enter a new one, read it:
#
# ROWS       What they put into the model works on every item by itself. Batches are for them, after a trial.
# MIXES      Some number comes from the whole batch, perhaps by less than the trial sees: candidates are sampled alone.
# TRIED      They fail with several items, or draw from the global generator. The trial of batches sees that.
# SKIPS      Caches that leave out steps of the model. What they put into `transformer_options` is called by CACHE, and
#            the calls that do not arrive are counted.
# GUIDES     They make a guider, which works on every item by itself.
# ELSEWHERE  Nothing of it is in what a search samples: samplers, which are tried, training, networks of other kinds.
ROWS = frozenset(
    {
        *(
            "APG",
            "CFGNorm",
            "CFGOverride",
            "CFGZeroStar",
            "Epsilon Scaling",
            "FreSca",
            "LatentApplyOperationCFG",
            "TCFG",
        ),
        *("TemporalScoreRescaling", "RescaleCFG", "NAGuidance", "PerturbedAttentionGuidance"),
        "SelfAttentionGuidance",
        *("ModelComputeDtype", "ModelNoiseScale", "ModelSamplingAuraFlow", "ModelSamplingContinuousEDM"),
        *("ModelSamplingContinuousV", "ModelSamplingDiscrete", "ModelSamplingFlux", "ModelSamplingLTXV"),
        *("ModelSamplingSD3", "ModelSamplingStableCascade", "MiniMaxH3SigmaShift", "ScaleROPE", "TorchCompileModel"),
        *("FreeU", "FreeU_V2", "HypernetworkLoader", "PatchModelAddDownscale", "ChromaRadianceOptions"),
        *("HiDreamO1PatchSeamSmoothing", "FluxKVCache", "DifferentialDiffusion", "SelectModelDevice"),
        *("AnimaLLLiteApply", "QwenImageDiffsynthControlnet", "SUPIRApply", "USOStyleReference", "ZImageFunControlnet"),
        *("WanUni3CControlnetApply", "WanInfiniteTalkToVideo", "LTXVReferenceAudio", "ARVideoI2V"),
        *("ContextWindowsManual", "WanContextWindowsManual", "LTXVContextWindows"),
    }
)
MIXES = {  # node -> the module that its functions come from, and what the log calls it
    "Mahiro": ("nodes_mahiro", "Mahiro"),
    "PerpNeg": ("nodes_perpneg", "Perp-Neg"),
    "PerpNegGuider": ("nodes_perpneg", "Perp-Neg"),
    "SkipLayerGuidanceDiT": ("nodes_slg", "Skip Layer Guidance"),
    "SkipLayerGuidanceDiTSimple": ("nodes_slg", "Skip Layer Guidance"),
    "SkipLayerGuidanceSD3": ("nodes_slg", "Skip Layer Guidance"),
    "VideoLinearCFGGuidance": ("nodes_video_model", "a guidance for videos"),
    "VideoTriangleCFGGuidance": ("nodes_video_model", "a guidance for videos"),
}
TRIED = frozenset({"HyperTile", "RenormCFG", "TomePatchModel"})
SKIPS = frozenset({"EasyCache", "LazyCache"})
GUIDES = frozenset({"BasicGuider", "CFGGuider", "DualCFGGuider", "DualModelGuider"})
ELSEWHERE = frozenset(
    {"SamplerEulerCFGpp", "SDPoseKeypointExtractor", "TrainLoraNode", "TripoSplatSamplingPreview", "VOIDSampler"}
)
# Of these, the ones whose functions or objects keep something from one run of the sampler to the next. The store's key
# is without it: names that a function assigns around itself are left out (`memory/functions.py`), and of what else is
# different after a search the value from before counts (`memory/leftovers.py`).
LEAVE_BEHIND = frozenset(
    {
        *("APG", "EasyCache", "FluxKVCache", "HiDreamO1PatchSeamSmoothing", "HyperTile", "LazyCache"),
        *("QwenImageDiffsynthControlnet", "SDPoseKeypointExtractor", "SelfAttentionGuidance", "TomePatchModel"),
        *("WanUni3CControlnetApply", "ZImageFunControlnet"),
    }
)
RANDOM_NOISE = ("nodes_custom_sampler", "Noise_RandomNoise")  # the module and class of a NOISE that is a seed
# ComfyUI's samplers that draw their noise from a seed, and the nodes of this pack that do the same with any noise: in
# Search Picture these stand in for them where a noise is no seed.
PART_SAMPLERS = {
    "KSampler": "NoiseSearchPartKSampler",
    "KSamplerAdvanced": "NoiseSearchPartKSamplerAdvanced",
    "SamplerCustom": "NoiseSearchPartSamplerCustom",
}
MIXING = dict(MIXES.values())  # module -> what the log calls it
CACHE = "cache"  # in the name of what a cache puts into `transformer_options`: EasyCache, LazyCache, TeaCache

# Latents and models.
NO_PICTURES = {"audio": "audio", "hunyuan3dv2": "a 3D shape"}  # by the "type" that nodes put in a LATENT
NO_PICTURE_FORMATS = {  # by the class of a model's latent format
    **dict.fromkeys(("ACEAudio", "ACEAudio15", "StableAudio1", "StableAudio3"), "audio"),
    **dict.fromkeys(("Hunyuan3Dv2", "Hunyuan3Dv2_1", "Hunyuan3Dv2mini", "TripoSplat"), "a 3D shape"),
}
RATIO_KEYS = ("downscale_ratio_spacial", "downscale_ratio_temporal")  # only newer hosts put these in a LATENT
FRAME_COUNTS = frozenset({"length", "video_frames", "num_frames"})  # inputs of nodes that make the latent of a video
VIDEO_MODELS = frozenset({"comfy.model_base.SVD_img2vid"})  # whose latent batch is one video
MOTION_MODELS = "ADE"  # under which AnimateDiff's pack keeps its motion models on a MODEL: then it is one, too

# The prompt in a graph. Of an encoder's texts, what was made of the wildcards in another, or the one that a person
# writes as a sentence: a language model's and the big CLIP's come first.
POPULATED = "populated"
PREFERRED_TEXTS = (
    *("t5xxl", "llama", "text_g", "clip_g", "prompt_g", "text", "prompt", "user_prompt", "mt5xl"),
    *("qwen25_7b", "tags", "bert", "text_l", "clip_l"),
)
HOLDS_TEXT = {  # nodes that only hold what they put out -> the input that it stands or is linked at
    **dict.fromkeys(("PrimitiveString", "PrimitiveStringMultiline", "PrimitiveBoolean"), "value"),
    "StringConstant": "string",
}
JOINS_LINES = {"StringConstantMultiline": ("string", "strip_newlines")}  # holds a text, and whether it is one line
FIRST_OF = {  # switches of packs that put out the first that is there of the inputs that begin so
    "Context Switch (rgthree)": "ctx_",
    "Context Switch Big (rgthree)": "ctx_",
}
GUIDED_TOWARDS = {"DualCFGGuider": "cond1"}  # guiders of several positives -> the one that the picture shows
ANY_TYPES = frozenset({"*", "COMFY_MATCHTYPE_V3"})
EDITS = re.compile(r"TextEncode\w*Edit|ReferenceLatent$")  # nodes by which a model is shown a picture to edit
ZEROED = "ConditioningZeroOut"  # no text is left behind it
OWN_MODULES = frozenset({"nodes", "comfy_extras", "comfy_api_nodes"})  # that ComfyUI's own nodes are in
TAG = re.compile(r"<(?:lora|lyco|lycoris|loha|locon|hypernet)\s*:[^<>]*>", re.IGNORECASE)
# What text boxes and encoders of other packs fill in, take out or carry out before the model reads the text: lines that
# begin with "#", [tokens], __wildcards__, {one|of|several}, MASK(0 0.5), and AND or COUPLE between prompts, but not in
# WORDS AND WORDS in capitals.
FILLED_IN = re.compile(
    r"^[ \t]*#|\[[^\[\]\n]+\]|__[^\s_][^\n]*?__|\{[^{}|]*\|[^{}]*\}"
    r"|\b[A-Z][A-Z0-9_]+\(|(?<![A-Z]\s)\b(?:AND|COUPLE)\b",
    re.MULTILINE,
)

# The store's key. By class, what changes on objects while they are used, or says where they are, and not what they
# make.
GUIDER = "comfy.samplers.CFGGuider"
PASSING: dict[str, frozenset[str]] = {
    GUIDER: frozenset({"conds", "inner_model", "loaded_models"}),
    "comfy.controlnet.ControlBase": frozenset(
        {
            *("cond_hint", "control_input", "extra_concat", "timestep_range", "model_sampling_current"),
            *("multigpu_clones", "load_device", "device"),
            "control_model",  # its weights are read through its patcher
        }
    ),
    "comfy.controlnet.ControlLora": frozenset({"manual_cast_dtype"}),  # of the model that it last ran with
    "comfy.hooks.Hook": frozenset({"need_weight_init", "hook_id"}),
    "comfy.hooks.HookKeyframeGroup": frozenset({"_curr_t", "curr_t"}),
    "comfy.hooks.HookKeyframe": frozenset({"start_t"}),
    "comfy.sd.VAE": frozenset({"patcher", "first_stage_model", "device", "output_device", "size"}),
}
PASSING_PREFIXES = {"comfy.hooks.HookKeyframeGroup": "_current", "comfy.sd.VAE": "memory_used"}
# How the names of layers begin that are no part of a network, by its class: nodes replace the first as a whole, which
# is among the patcher's objects, and SD3.5's ControlNets take the others from the model that they run with.
PASSING_LAYERS = {
    "torch.nn.modules.module.Module": ("model_sampling.",),
    "comfy.cldm.dit_embedder.ControlNetEmbedder": ("x_embedder.", "orig_y_embedder."),
}
# What ComfyUI and PyTorch note on a network about where it is.
LOADING = frozenset(
    {
        *("training", "device", "dump_patches", "call_super_init", "skip_injection", "model_lowvram"),
        *("lowvram_patch_counter", "model_loaded_weight_memory", "model_offload_buffer_memory"),
        *("current_weight_patches_uuid", "comfy_cast_weights", "prev_comfy_cast_weights", "comfy_force_cast_weights"),
        *("comfy_patched_weights", "pin_failed", "seed_key"),
    }
)

# Every option of ComfyUI's command line is in one of these two. One that is in neither, of a newer ComfyUI, may change
# numbers.
_CHANGES_NUMBERS = """
    cpu cpu_vae directml oneapi_device_selector
    force_fp32 force_fp16 fp16_intermediates
    fp32_unet fp64_unet bf16_unet fp16_unet fp8_e4m3fn_unet fp8_e5m2_unet fp8_e8m0fnu_unet
    fp16_vae fp32_vae bf16_vae
    fp8_e4m3fn_text_enc fp8_e5m2_text_enc fp16_text_enc fp32_text_enc bf16_text_enc
    use_split_cross_attention use_quad_cross_attention use_pytorch_cross_attention use_sage_attention
    use_flash_attention disable_xformers force_upcast_attention dont_upcast_attention
    fast deterministic force_channels_last supports_fp8_compute
    enable_triton_backend disable_triton_backend disable_ipex_optimize
    gpu_only highvram normalvram lowvram novram disable_dynamic_vram enable_dynamic_vram
"""  # the last line: whether LoRAs are added to the weights or while they are used, which rounds otherwise
_CHANGES_NO_NUMBERS = """
    help listen port tls_keyfile tls_certfile enable_cors_header max_upload_size
    base_directory extra_model_paths_config output_directory temp_directory input_directory user_directory
    models_directory auto_launch disable_auto_launch cuda_device default_device cuda_malloc disable_cuda_malloc
    preview_method preview_size cache_classic cache_lru cache_none cache_ram high_ram
    enable_manager disable_manager_ui enable_manager_legacy_ui
    reserve_vram vram_headroom disable_nvml_pressure async_offload disable_async_offload fast_disk force_non_blocking
    default_hashing_function disable_smart_memory debug_hang disable_pinned_memory mmap_torch_files disable_mmap
    dont_print_server quick_test_for_ci windows_standalone_build disable_metadata
    disable_all_custom_nodes whitelist_custom_nodes disable_api_nodes multi_user verbose log_stdout
    front_end_version front_end_root enable_compress_response_body comfy_api_base database_url
    disable_assets_autoscan enable_assets enable_asset_hashing feature_flag list_feature_flags
"""  # which device it is: by its name, in memory/machine.py
CHANGES_NUMBERS, CHANGES_NO_NUMBERS = frozenset(_CHANGES_NUMBERS.split()), frozenset(_CHANGES_NO_NUMBERS.split())

# What attention, samplers with noise of their own, quantised layers and verifiers (with their tokenisers, which read
# typographic quotes and CJK in another way without ftfy) compute with.
LIBRARIES = (
    *(
        "sageattention",
        "flash-attn",
        "xformers",
        "triton",
        "triton-windows",
        "comfy-kitchen",
        "torchsde",
        "torchvision",
    ),
    *("transformers", "tokenizers", "sentencepiece", "open_clip_torch", "ftfy", "timm", "numpy", "pillow", "gguf"),
)


def home(value: object) -> str:
    """The module that a class or function comes from, without what stands in front. A server loads ComfyUI's own files
    of nodes one by one: there a module is called by the file's path, and is another one than what an import gives."""
    return re.split(r"[./\\]", str(getattr(value, "__module__", "")))[-1]


def kinds(value: object) -> list[str]:
    """The classes that an object is made from, its own first, as they are called here."""
    return [f"{kind.__module__}.{kind.__qualname__}" for kind in type(value).__mro__]
