r"""Log-probabilities as OpenAI tells them: ids become texts, bytes and places in the answer's text.

Source: OpenAI API reference, `logprobs` of completions and of chat completions. A token whose bytes are no whole
characters is spelled `bytes:\xf0\x9f`, as OpenAI's completions do; a special token by its name.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tandem.protocol.answers import Answer, Endpoint
from tandem.protocol.logprobs import TokenLogprobs
from tandem.text.detokenizer import Detokenizer, Start
from tandem.text.tokenizer import Tokenizer


class Spelling:
    """Tells one choice's log-probabilities, piece by piece.

    Args:
        tokenizer: Whose ids they are about.
        endpoint: Decides the shape.
        start: What becomes of blanks where the answer begins.
        before: Tokens of the answer that were generated elsewhere.
    """

    def __init__(self, tokenizer: Tokenizer, endpoint: Endpoint, start: Start, before: Iterable[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._endpoint = endpoint
        self._detokenizer = Detokenizer(tokenizer, start)
        self._offset = sum(len(self._detokenizer.push(token)) for token in before)

    def tell(self, logprobs: Sequence[TokenLogprobs]) -> Answer:
        """What is to be said of the next tokens of the choice."""
        if self._endpoint == "chat":
            return {"content": [self._content(one) for one in logprobs]}
        return {
            "tokens": [self._text(one.token) for one in logprobs],
            "token_logprobs": [one.logprob for one in logprobs],
            "top_logprobs": [self._alternatives(one) for one in logprobs],
            "text_offset": [self._place(one.token) for one in logprobs],
        }

    def _content(self, one: TokenLogprobs) -> Answer:
        top = [self._entry(token, logprob) for token, logprob in one.top]
        return self._entry(one.token, one.logprob) | {"top_logprobs": top}

    def _entry(self, token: int, logprob: float) -> Answer:
        return {"token": self._text(token), "logprob": logprob, "bytes": list(self._bytes(token))}

    def _alternatives(self, one: TokenLogprobs) -> Answer:
        """By text, the drawn token always among them; of several that read alike the most likely one stands."""
        told: Answer = {}
        for token, logprob in (*one.top, (one.token, one.logprob)):
            told.setdefault(self._text(token), logprob)
        return told

    def _place(self, token: int) -> int:
        """How many characters were certain before the token."""
        place = self._offset
        self._offset += len(self._detokenizer.push(token))
        return place

    def _text(self, token: int) -> str:
        piece = self._bytes(token)
        try:
            return piece.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)

    def _bytes(self, token: int) -> bytes:
        tokenizer = self._tokenizer
        return tokenizer.bytes_of(token) or tokenizer.decode([token], skip_special=False).encode()
