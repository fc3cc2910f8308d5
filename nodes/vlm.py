"""Verifiers that ask a vision-language model, and the three ways to have one."""

from __future__ import annotations

from comfy_api.latest import io

from ..host.judging.folders import checked, vlm_choices, vlm_folder
from ..host.judging.vlm import ClipVLM, fingerprint, load_endpoint, load_vlm_folder, load_vlm_grader, load_vqa_score
from ..verifiers.vlm import QUESTION
from . import types
from .verifiers import schema


def _vlm_output() -> io.Output:
    return types.VLM.Output(display_name="vlm", tooltip="For VQA Score or VLM Grader.")


class VLMFolder(types.Node):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="NoiseSearchVLMFolder",
            display_name="VLM from Folder",
            category=types.CATEGORY,
            description="A vision-language model from models/LLM, run on this machine, for VQA Score and VLM Grader.",
            search_aliases=["vlm", "qwen", "llava", "smolvlm", "transformers", "local model"],
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=vlm_choices(),
                    tooltip="Put the folder of a whole image-text-to-text model, in transformers' layout with "
                    "safetensors weights, such as Qwen3-VL-4B-Instruct (Apache-2.0 licence, 8.9 GB), into models/LLM, "
                    "then press R. Nothing is downloaded.",
                ),
                types.precision_input(
                    "How the model computes. Auto: bf16 on a GPU that has it, else fp16; fp32 on the CPU."
                ),
            ],
            outputs=[_vlm_output()],
        )

    @classmethod
    def validate_inputs(cls, model_name=None) -> bool | str:
        return checked(vlm_folder, model_name)

    @classmethod
    def fingerprint_inputs(cls, model_name, **inputs) -> str:
        return fingerprint(model_name)

    @classmethod
    def execute(cls, model_name, precision) -> io.NodeOutput:
        return io.NodeOutput(load_vlm_folder(model_name, precision))


class VLMClip(types.Node):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="NoiseSearchVLMClip",
            display_name="VLM from CLIP",
            category=types.CATEGORY,
            description="A text encoder that sees and writes, such as Qwen3-VL, for VQA Score and VLM Grader.",
            search_aliases=["vlm", "qwen", "gemma", "text encoder"],
            inputs=[
                io.Clip.Input(
                    "clip",
                    tooltip="A text encoder that looks at images and writes text: Qwen3-VL 4B or 8B, Qwen3.5, Gemma 3 "
                    "or 4. It is used as it is, not copied. Good for VQA Score and VLM Grader.",
                ),
            ],
            outputs=[_vlm_output()],
        )

    @classmethod
    def execute(cls, clip) -> io.NodeOutput:
        return io.NodeOutput(ClipVLM(clip))


class VLMEndpoint(types.Node):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="NoiseSearchVLMEndpoint",
            display_name="VLM Endpoint",
            category=types.CATEGORY,
            description="A vision-language model behind an OpenAI-compatible server, on this machine or elsewhere. "
            "Every image that is scored, and the prompt, is sent there.",
            search_aliases=["vlm", "openai", "api", "llama.cpp", "vllm", "ollama", "lm studio"],
            inputs=[
                io.String.Input(
                    "url",
                    default="http://localhost:8080/v1",
                    tooltip="Where the API is, such as http://localhost:8080/v1 (llama.cpp) or "
                    "https://api.openai.com/v1. Images and prompts are sent there.",
                ),
                io.String.Input("model", default="", tooltip="The model's name as that server knows it."),
                io.String.Input(
                    "key_variable",
                    default="",
                    tooltip="The NAME of the environment variable that holds the key, such as OPENAI_API_KEY; never "
                    "the key itself. Empty for servers without keys. A key only goes to the host it belongs to: see "
                    "this node's help.",
                ),
                io.Int.Input(
                    "concurrency",
                    default=4,
                    min=1,
                    max=64,
                    tooltip="How many requests may be under way at once.",
                ),
                io.Int.Input(
                    "timeout",
                    default=60,
                    min=1,
                    max=3600,
                    tooltip="Seconds to wait for one answer. A request that fails is repeated up to four times.",
                ),
                io.Int.Input(
                    "max_calls",
                    default=500,
                    min=1,
                    max=1_000_000,
                    tooltip="The most requests that one search may make, repeated ones included; then it stops with an "
                    "error. It guards your bill.",
                ),
            ],
            outputs=[_vlm_output()],
        )

    @classmethod
    def execute(cls, url, model, key_variable, concurrency, timeout, max_calls) -> io.NodeOutput:
        return io.NodeOutput(load_endpoint(url, model, key_variable, concurrency, timeout, max_calls))


class VQAScore(types.Node):
    @classmethod
    def define_schema(cls):
        return schema(
            "vqa_score",
            types.VLM.Input("vlm", tooltip="The model to ask: VLM from Folder, VLM from CLIP or VLM Endpoint."),
            io.String.Input(
                "question",
                default=QUESTION,
                optional=True,
                advanced=True,
                tooltip="What the model is asked, with {prompt} for the prompt; it must be a yes-or-no question. "
                "Scores of different questions cannot be compared.",
            ),
        )

    @classmethod
    def execute(cls, vlm, question=QUESTION) -> io.NodeOutput:
        return io.NodeOutput(load_vqa_score(vlm, question))


class VLMGrader(types.Node):
    @classmethod
    def define_schema(cls):
        return schema(
            "vlm_grader",
            types.VLM.Input("vlm", tooltip="The model that grades: VLM from Folder, VLM from CLIP or VLM Endpoint."),
            io.Int.Input(
                "samples",
                default=1,
                min=1,
                max=64,
                tooltip="How many gradings to average per image. More take longer and tell close images apart: "
                "single grades are often the same.",
            ),
            io.Float.Input(
                "temperature",
                default=0.7,
                min=0.05,
                max=2.0,
                step=0.05,
                round=0.001,
                tooltip="How much the samples differ from each other. One sample alone is the model's likeliest "
                "answer, whatever this says.",
            ),
        )

    @classmethod
    def execute(cls, vlm, samples, temperature) -> io.NodeOutput:
        return io.NodeOutput(load_vlm_grader(vlm, samples, temperature))


NODES = [VLMFolder, VLMClip, VLMEndpoint, VQAScore, VLMGrader]
