"""Token ids to text as they come: only whole characters, and nothing that may become a stop string."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenizers.decoders import DecodeStream

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class TextStream:
    """The text of one generation.

    Args:
        tokenizer: None if the model has none; the text is then always empty.
        prompt: its token ids, as how a token is written can depend on those before it.
        stop: strings before which the text ends.
    """

    def __init__(self, tokenizer: Tokenizer | None, prompt: list[int], stop: list[str]) -> None:
        self.tokenizer = tokenizer
        self.prompt = prompt
        self.stop = stop
        self.ids: list[int] = []
        self.stopped = False
        self._decoder = DecodeStream(ids=prompt, skip_special_tokens=True)
        self._decoded = ""
        self._given = 0

    def push(self, token: int) -> str:
        """Take one token; returns the text that is certain now. Sets `stopped` when a stop string is complete."""
        self.ids.append(token)
        if self.tokenizer is None or self.stopped:
            return ""
        self._decoded += self._decoder.step(self.tokenizer, token) or ""
        return self._give(self._certain())

    def finish(self) -> str:
        """The rest of the text, including bytes of a character that was never completed."""
        if self.tokenizer is None or self.stopped:
            return ""
        # The decoder holds back an incomplete character for ever; a whole decode shows it as a replacement mark.
        before = self.tokenizer.decode(self.prompt, skip_special_tokens=True)
        whole = self.tokenizer.decode(self.prompt + self.ids, skip_special_tokens=True)
        rest = whole[len(before) :] if whole.startswith(before) else ""
        if rest.startswith(self._decoded):
            self._decoded = rest
        return self._give(len(self._decoded))

    def _certain(self) -> int:
        """How much of the decoded text may be shown; cuts it where a stop string begins."""
        searched = max(0, self._given - max((len(s) for s in self.stop), default=0))
        found = [at for at in (self._decoded.find(s, searched) for s in self.stop) if at >= 0]
        if found:
            self.stopped = True
            return min(found)
        held = 0
        for stop in self.stop:
            for size in range(min(len(stop) - 1, len(self._decoded)), held, -1):
                if self._decoded.endswith(stop[:size]):
                    held = size
                    break
        return len(self._decoded) - held

    def _give(self, until: int) -> str:
        fresh = self._decoded[self._given : until]
        self._given = max(self._given, until)
        return fresh
