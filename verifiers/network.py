"""What verifiers on a network from local files have in common: loading, prompts read once, identity."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from .base import VerifierError
from .preprocess import Preprocess
from .weights import content_hash, file_stamp

if TYPE_CHECKING:
    from typing_extensions import Self

MAX_PROMPTS = 64

SHOWN_WORDS = 4  # the last ones that are read of a prompt that is cut

T = TypeVar("T")


@dataclass(frozen=True)
class Network:
    """Weights in a module, and what is needed around them.

    tokenize: text -> (ids [1, L], how many tokens the whole text has). context_length: the tokens it reads.
    architecture: what was chosen beyond what the files say, "" for nothing. files: all that determine the result.
    """

    module: torch.nn.Module
    tokenize: Callable[[str], tuple[torch.Tensor, int]]
    preprocess: Preprocess
    context_length: int
    architecture: str
    files: tuple[Path, ...]


class Prompts(OrderedDict[str, T]):
    """What a verifier made of the last few prompts."""

    def read(self, prompt: str, make: Callable[[str], T]) -> T:
        """What `make` gives for the prompt; remembered."""
        if prompt in self:
            self.move_to_end(prompt)
            return self[prompt]
        made = self[prompt] = make(prompt)
        if len(self) > MAX_PROMPTS:
            self.popitem(last=False)
        return made


class NetworkVerifier:
    """One value per image and prompt from a `Network`; what it computes is in its subclasses.

    Images go through the network one at a time, so a value does not depend on the batch, bit for bit.
    """

    needs_prompt = True
    name = ""
    title = ""
    architecture = ""  # of a single weight file, where the verifier knows it
    weights = 0  # how many the network has, where it can only be one
    source = ""  # the files to get

    encoder: Any  # a Network

    def __init__(
        self,
        encoder: Network,
        label: str,
        dtype: torch.dtype = torch.float32,
        usual_range: tuple[float, float] | None = None,
    ):
        self.encoder = encoder
        self.dtype = dtype
        self.module = encoder.module.eval().requires_grad_(False)
        if any(parameter.dtype != dtype for parameter in self.module.parameters()):
            self.module.to(dtype)  # not otherwise: verifiers may share a network that is in use
        self.members = (self.title if label == self.title else f"{self.title} ({label})",)
        self.usual_range = usual_range or self._usual_range()
        self.prompt_tokens = encoder.context_length
        self.preprocess = encoder.preprocess
        self._prompts: Prompts[torch.Tensor] = Prompts()
        self._stamp = file_stamp(encoder.files)
        self._identity = ""

    @classmethod
    def load(
        cls,
        path: str | Path,
        label: str = "",
        architecture: str = "",
        dtype: torch.dtype = torch.float32,
        usual_range: tuple[float, float] | None = None,
    ) -> Self:
        """From local files (see `open`); nothing is downloaded. Raises VerifierError."""
        return cls(cls.open(path, architecture), label or Path(path).stem, dtype, usual_range)

    @classmethod
    def open(cls, path: str | Path, architecture: str = "") -> Any:
        """The network of `load`, in the dtype of the file; several verifiers can share it. Raises VerifierError."""
        raise NotImplementedError

    @classmethod
    def resolve(cls, path: Path, architecture: str) -> tuple[Path, str]:
        """Path and architecture as `open` is to take them: what decides which network is built."""
        return path, architecture or (cls.architecture if path.is_file() else "")

    @classmethod
    def check(cls, network: Network, path: Path) -> None:
        """Raises VerifierError where the network from `path` cannot be this verifier's: by its number of weights."""
        found = sum(tensor.numel() for tensor in network.module.state_dict().values())
        if cls.weights and found != cls.weights:
            raise VerifierError(
                f"{path} is another model: {found / 1e6:,.1f} million weights, and {cls.title} is a {cls.architecture} "
                f"of {cls.weights / 1e6:,.1f} million. {cls.source}"
            )

    @classmethod
    def files(cls, path: Path) -> list[Path]:
        """The files that `open` may read for a path that `resolve` gave."""
        return [path] if path.is_file() else [file for file in path.iterdir() if file.is_file()]

    def identity(self) -> str:
        """SHA-256 of the model's files, the architecture, the preprocessing and the dtype. Read once, when asked."""
        if not self._identity:
            if file_stamp(self.encoder.files) != self._stamp:
                names = ", ".join(path.name for path in self.encoder.files)
                raise VerifierError(
                    f"{self.members[0]}: its files changed after they were loaded ({names}); load it again"
                )
            settings = {
                "verifier": self.name,
                "architecture": self.encoder.architecture,
                "dtype": str(self.dtype),
                "preprocess": self.preprocess.settings(),
            }
            self._identity = f"{self.name}:{content_hash(self.encoder.files, settings)}"
        return self._identity

    def cut(self, prompt: str) -> str | None:
        """Where the tokenizer cuts a prompt that is too long, in a sentence; None if all of it is read."""

        def tokens(text: str) -> int:
            return self.encoder.tokenize(text)[1]

        limit, count = self.encoder.context_length, tokens(prompt)
        if count <= limit:
            return None
        # where words end; in scripts without spaces every character may
        ends = [match.end() for match in re.finditer(r"[!-~]+|[^\x00-\x7f]", prompt)]
        read = prompt[: [0, *ends][bisect_right(ends, limit, key=lambda end: tokens(prompt[:end]))]]
        last = " ".join(read.split()[-SHOWN_WORDS:])[-40:]
        where = f"up to '...{last}'" if last else "which end in its first word"
        return (
            f"{self.members[0]} reads the first {limit} of {count} tokens of the prompt, {where}; the rest is cut off"
        )

    @torch.no_grad()
    def score(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """Raw values, float32 [B, 1]. images: float [B, H, W, 3] in 0..1 on any device; prompts: B texts."""
        if len(images) != len(prompts):
            raise VerifierError(f"{self.members[0]}: {len(images)} images for {len(prompts)} prompts")
        values = [self.value(image, prompt) for image, prompt in zip(images, prompts, strict=True)]
        return torch.stack(values)[:, None] if values else torch.zeros(0, 1)

    def value(self, image: torch.Tensor, prompt: str) -> torch.Tensor:
        """The value of one image [H, W, 3], a float32 scalar on the CPU."""
        raise NotImplementedError

    def pixels(self, image: torch.Tensor) -> torch.Tensor:
        """One image [H, W, 3] as the network takes it: [1, 3, h, w] in its dtype, on its device."""
        return self.preprocess(image.to(self._device(), torch.float32)).to(self.dtype)

    def _usual_range(self) -> tuple[float, float]:
        raise NotImplementedError

    def _device(self) -> torch.device:
        return next(self.module.parameters()).device
