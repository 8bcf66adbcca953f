"""Which options and inputs a head takes: what could not be answered is refused before anything is tokenized."""

from __future__ import annotations

from typing import Final

from shoal_server.errors import InvalidRequest
from shoal_server.front.convert_classify import ClassifySettings, IdsInput, Input, PairInput

TOKEN_HEAD: Final = "token"  # noqa: S105


def check_options(settings: ClassifySettings, head: str) -> None:
    """Raises InvalidRequest for an option that means nothing to this head."""
    is_token = head == TOKEN_HEAD
    if is_token and settings.score_option:
        raise InvalidRequest.of(settings.score_option, "is not for models with a token head, as this one is")
    if not is_token and settings.token_option:
        raise InvalidRequest.of(settings.token_option, f"is for models with a token head; this one's is {head}")


def check_input(item: Input, settings: ClassifySettings, head: str) -> None:
    """Raises InvalidRequest for an input that this head cannot answer."""
    if head != TOKEN_HEAD:
        return
    if isinstance(item, PairInput):
        raise InvalidRequest.of(item.field, "is a pair, which is not for models with a token head, as this one is")
    if isinstance(item, IdsInput) and settings.aggregation.needs_words:
        name = f"AGGREGATION_{settings.aggregation.name}"
        raise InvalidRequest.of(item.field, f"do not tell words, which {name} goes by; NONE and SIMPLE do without")
