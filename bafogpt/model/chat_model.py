"""A model for chat and generation: a loaded model folder with its tokenizer and prompt style."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from bafogpt.core.errors import ConfigError, DataError, UsageError, did_you_mean
from bafogpt.data import prompts
from bafogpt.data import tokenizer as tokenizers
from bafogpt.data.messages import Message
from bafogpt.data.prompts import PromptStyle
from bafogpt.data.tokenizer import Tokenizer
from bafogpt.model.formats.folder import DTYPES, ModelFolder
from bafogpt.model.generate import Sampling, TextStream, generate
from bafogpt.model.gpt import GPT, load_gpt


@dataclass(frozen=True)
class AnswerChunk:
    """The text that one token adds to an answer."""

    text: str
    """May be empty."""
    finish: Literal["stop", "length"] | None = None
    """Why the answer ends here: a stop token or string, or the maximum length."""


@dataclass(frozen=True)
class ChatModel:
    """A loaded model. Thread-safe: each answer has its own cache."""

    name: str
    gpt: GPT
    tokenizer: Tokenizer
    style: PromptStyle

    @classmethod
    def load(
        cls,
        path: Path,
        *,
        tokenizer: str | None = None,
        style: str = "chat",
        device: str = "auto",
        dtype: str | None = None,
    ) -> ChatModel:
        """Load a model folder. ``device`` is ``cpu``, ``cuda`` or ``auto``; ``tokenizer`` and ``dtype`` default to the
        folder's.

        Raises what :meth:`ModelFolder.open`, :func:`tokenizers.load` and :func:`prompts.load` raise, and
        :class:`ConfigError` for a tokenizer with more ids than the model.
        """
        folder = ModelFolder.open(path)
        loaded = tokenizers.load(str(path) if tokenizer is None else tokenizer)
        if loaded.vocab_size > folder.config.padded_vocab_size:
            name = "the tokenizer" if tokenizer is None else f"the tokenizer {tokenizer}"
            raise ConfigError(
                f"{path}: {name} has {loaded.vocab_size:,} ids, the model {folder.config.padded_vocab_size:,}",
                "use the tokenizer that the model was trained with, or expand the model: bafogpt model expand",
            )
        prompt_style = prompts.load(style, loaded)
        if dtype is not None and dtype not in DTYPES:
            raise UsageError(
                f"no dtype '{dtype}'{did_you_mean(dtype, DTYPES)}", f"--dtype is one of {', '.join(DTYPES)}"
            )
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        elif device == "cuda" and not torch.cuda.is_available():
            raise UsageError("there is no CUDA device here", "--device cpu")
        gpt = load_gpt(folder, device=device, dtype=DTYPES[dtype] if dtype else None)
        return cls(path.resolve().name, gpt, loaded, prompt_style)

    @property
    def context(self) -> int:
        """Maximum tokens of prompt and answer together."""
        return int(self.gpt.max_seq_length)

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """The prompt's ids. Raises :class:`DataError` for messages that the template refuses or that are not UTF-8."""
        for message in messages:
            require_text(message.content + message.input)
        return self.style.prompt(messages)

    def text(self, text: str) -> list[int]:
        """The ids of a text to continue. Raises :class:`DataError` where it is not UTF-8."""
        require_text(text)
        (ids,) = self.tokenizer.encode_batch([text])
        return [*self.tokenizer.begin, *(int(each) for each in ids)]

    def room(self, prompt: Sequence[int]) -> int:
        """Maximum tokens of an answer. Raises :class:`UsageError` where the prompt leaves none."""
        room = self.context - len(prompt)
        if room < 1:
            raise UsageError(
                f"the prompt has {len(prompt):,} tokens, the model {self.context:,} positions", "shorten the prompt"
            )
        return room

    def answer(
        self, prompt: Sequence[int], *, max_tokens: int, sampling: Sampling, stop: Sequence[str] = ()
    ) -> Iterator[AnswerChunk]:
        """Stream the answer, one chunk per token; the last has a finish reason. Raises what :func:`generate` raises."""
        stops = self.style.stops
        tokens = generate(
            self.gpt,
            prompt,
            max_tokens=max_tokens,
            sampling=sampling,
            stops=stops,
            vocabulary=self.tokenizer.vocab_size,
        )
        return _chunks(tokens, stops, TextStream(self.tokenizer.decode, stop))


def _chunks(tokens: Iterator[int], stops: frozenset[int], stream: TextStream) -> Iterator[AnswerChunk]:
    for token in tokens:
        if token in stops:
            yield AnswerChunk(stream.finish(), "stop")
            return
        text = stream.push(token)
        if stream.stopped:
            yield AnswerChunk(text, "stop")
            return
        yield AnswerChunk(text)
    rest = stream.finish()
    yield AnswerChunk(rest, "stop" if stream.stopped else "length")


def require_text(text: str) -> None:
    """Raise :class:`DataError` for a lone surrogate: Python's spelling of an input byte that is not UTF-8."""
    wrong = next((place for place, letter in enumerate(text) if "\ud800" <= letter <= "\udfff"), None)
    if wrong is not None:
        raise DataError(f"the text is not UTF-8 at character {wrong + 1}", "convert it: iconv -f latin1 -t utf-8")


def chat_turn(
    model: ChatModel, history: list[Message], question: str, answer: Callable[[list[int]], Iterator[AnswerChunk]]
) -> Iterator[str]:
    """Stream the answer to ``question``; both are added to ``history`` when it is complete.

    Drops the oldest turns where the conversation takes more than half of the context. Raises :class:`DataError` for an
    empty question.
    """
    if not question.strip():
        raise DataError("the question is empty", "type a question")
    turns = [*history, Message("user", question)]
    prompt = model.prompt(turns)
    while len(prompt) > model.context // 2 and len(turns) > 2:
        system = [turn for turn in turns if turn.role == "system"]
        turns = [*system, *[turn for turn in turns if turn.role != "system"][2:]]
        prompt = model.prompt(turns)
    texts = []
    for chunk in answer(prompt):
        texts.append(chunk.text)
        yield chunk.text
    history[:] = [*turns, Message("assistant", "".join(texts))]
