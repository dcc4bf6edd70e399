"""What prompts need of a model's processor; those of transformers have it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class ImageProcessor(Protocol):
    """What turns pixels into patches."""

    merge_size: int

    def get_number_of_image_patches(self, height: int, width: int, images_kwargs: dict[str, Any] | None = None) -> int:
        """Patches of an image of that size, resizing included."""
        ...


class Tokenizer(Protocol):
    """What turns text into token ids."""

    @property
    def backend_tokenizer(self) -> Any:
        """The `tokenizers.Tokenizer` at work."""
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
    image_processor: ImageProcessor
    tokenizer: Tokenizer

    def apply_chat_template(self, conversation: Any, chat_template: str | None = None, **kwargs: Any) -> Any:
        """Render a conversation."""
        ...

    def __call__(self, images: Any = None, text: Any = None, **kwargs: Any) -> Mapping[str, Any]:
        """Encode texts, with each image token expanded, and images."""
        ...
