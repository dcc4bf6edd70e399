"""What prompts need of a model's processor; those of transformers have it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class ImageProcessor(Protocol):
    """What turns pixels into patches; each kind of processor has what its `Showing` reads."""

    patch_size: int
    merge_size: int
    max_image_size: Mapping[str, int]
    size: Mapping[str, int]
    max_patches: int
    image_grid_pinpoints: Sequence[Sequence[int]]

    def get_number_of_image_patches(self, height: int, width: int, images_kwargs: dict[str, Any] | None = None) -> int:
        """Patches of an image of that size, resizing included."""
        ...


class Tokenizer(Protocol):
    """What turns text into token ids."""

    image_token: str
    image_token_id: int

    @property
    def backend_tokenizer(self) -> Any:
        """The `tokenizers.Tokenizer` at work."""
        ...

    def __call__(self, text: Any, *, add_special_tokens: bool = True) -> Mapping[str, Any]:
        """Texts as ids; special tokens in them are special."""
        ...

    def decode(
        self, token_ids: Any, *, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool = False
    ) -> str:
        """Token ids as text."""
        ...


class Processor(Protocol):
    """What turns a conversation and its images into a model's inputs."""

    image_token: str
    image_token_id: int
    image_seq_len: int
    image_seq_length: int
    num_image_tokens: int
    vision_aspect_ratio: str
    start_image_token: str
    end_image_token: str
    boi_token: str
    full_image_sequence: str
    image_processor: ImageProcessor
    tokenizer: Tokenizer

    def apply_chat_template(self, conversation: Any, chat_template: str | None = None, **kwargs: Any) -> Any:
        """Render a conversation."""
        ...

    def __call__(self, images: Any = None, text: Any = None, **kwargs: Any) -> Mapping[str, Any]:
        """Encode texts, with each image token expanded, and images."""
        ...
