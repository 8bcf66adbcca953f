"""One completion as the front sees it: tokens in, text out, how it ended. Knows no gRPC and no engine connection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from shoal_server.front.detokenizer import Decoder, Detokenizer
from shoal_server.front.stop_strings import StopStrings
from shoal_server.ipc.messages import EngineTimes, FinishReason, GenerateDone, TokenLogprobs, TokensGenerated


class Ending(Enum):
    """Why a completion ended; the engine's reasons and the one that is found here."""

    END_OF_SEQUENCE = "end_of_sequence"
    STOP_STRING = "stop_string"
    STOP_TOKEN = "stop_token"  # noqa: S105
    LENGTH = "length"
    CONTEXT_FULL = "context_full"


@dataclass(slots=True, kw_only=True)
class Piece:
    """What one message of the engine added to a completion."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)

    def add(self, other: Piece) -> None:
        """Append what came later."""
        self.text += other.text
        self.token_ids += other.token_ids
        self.logprobs += other.logprobs


class Completion:
    """The state of one completion."""

    def __init__(self, decoder: Decoder, stop_strings: Sequence[str], min_new_tokens: int) -> None:
        self._detokenizer = Detokenizer(decoder)
        self._stops = StopStrings(stop_strings) if stop_strings else None
        self._min_new_tokens = min_new_tokens
        self.num_tokens = 0
        self.ending: Ending | None = None  # None while it goes on
        self.stop_string = ""
        self.stop_token_id: int | None = None
        self.times: EngineTimes | None = None  # None when a stop string ended it before the engine did

    def take_tokens(self, message: TokensGenerated) -> Piece:
        """Add new tokens; when they complete a stop string the completion has ended and later ones are dropped."""
        if self._stops is None:
            self.num_tokens += len(message.token_ids)
            text = self._detokenizer.push(message.token_ids)
            return Piece(text=text, token_ids=message.token_ids, logprobs=message.logprobs)
        text, num_taken = "", 0
        for token_id in message.token_ids:  # one by one: the tokens that make up a stop string are told apart
            num_taken += 1
            self.num_tokens += 1
            released = self._stops.push(
                self._detokenizer.push([token_id]), may_stop=self.num_tokens >= self._min_new_tokens
            )
            text += released.text
            if released.stop_string:
                self.ending, self.stop_string = Ending.STOP_STRING, released.stop_string
                break
        return Piece(text=text, token_ids=message.token_ids[:num_taken], logprobs=message.logprobs[:num_taken])

    def finish(self, message: GenerateDone) -> Piece:
        """Give out what was held back; this may yet complete a stop string."""
        self.times = message.times
        text = self._detokenizer.finish()
        if self._stops is not None:
            released = self._stops.push(text, may_stop=self.num_tokens >= self._min_new_tokens)
            if released.stop_string:
                self.ending, self.stop_string = Ending.STOP_STRING, released.stop_string
                return Piece(text=released.text)
            text = released.text + self._stops.finish()
        self.ending = _ENDINGS[message.reason]
        self.stop_token_id = message.stop_token_id
        return Piece(text=text)


_ENDINGS = {
    FinishReason.END_OF_SEQUENCE: Ending.END_OF_SEQUENCE,
    FinishReason.STOP_TOKEN: Ending.STOP_TOKEN,
    FinishReason.LENGTH: Ending.LENGTH,
    FinishReason.CONTEXT_FULL: Ending.CONTEXT_FULL,
}
