"""A model that talks: a model folder in memory, with its tokenizer and the style of its prompts."""

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
    """A token's worth of an answer."""

    text: str
    """What became certain with it; may be empty."""
    finish: Literal["stop", "length"] | None = None
    """Why the answer ends here: the model ended it, or it is as long as was asked for."""


@dataclass(frozen=True)
class ChatModel:
    """A loaded model. Answers may be made in several threads at once: each has a cache of its own."""

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
        """Read a model folder. ``device`` is ``cpu``, ``cuda`` or ``auto``; ``tokenizer``, as
        :func:`bafogpt.data.tokenizer.load` takes it, and ``dtype`` are the folder's own by default.

        Raises what :meth:`ModelFolder.open` raises, :class:`NotFoundError` and :class:`DataError` for the tokenizer,
        and :class:`ConfigError` for one with more ids than the model.
        """
        folder = ModelFolder.open(path)
        words = tokenizers.load(str(path) if tokenizer is None else tokenizer)
        if words.vocab_size > folder.config.padded_vocab_size:
            name = "the tokenizer" if tokenizer is None else f"the tokenizer {tokenizer}"
            raise ConfigError(
                f"{path}: {name} has {words.vocab_size:,} ids, the model {folder.config.padded_vocab_size:,}",
                "take the tokenizer that the model was trained with, or expand the model: bafogpt model expand",
            )
        prompt_style = prompts.load(style, words)
        if dtype is not None and dtype not in DTYPES:
            raise UsageError(
                f"no dtype '{dtype}'{did_you_mean(dtype, DTYPES)}", f"--dtype is one of {', '.join(DTYPES)}"
            )
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        elif device == "cuda" and not torch.cuda.is_available():
            raise UsageError("there is no CUDA device here", "--device cpu")
        gpt = load_gpt(folder, device=device, dtype=DTYPES[dtype] if dtype else None)
        return cls(path.resolve().name, gpt, words, prompt_style)

    @property
    def context(self) -> int:
        """Tokens of prompt and answer together."""
        return int(self.gpt.max_seq_length)

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """The ids after which the model answers. Raises :class:`DataError` where the template refuses, and for what is
        no text."""
        for message in messages:
            require_text(message.content + message.input)
        return self.style.prompt(messages)

    def text(self, text: str) -> list[int]:
        """The ids of a text that is to be continued. Raises :class:`DataError` for what is no text."""
        require_text(text)
        (ids,) = self.tokenizer.encode_batch([text])
        return [*self.tokenizer.begin, *(int(each) for each in ids)]

    def room(self, prompt: Sequence[int]) -> int:
        """Tokens that an answer may have. Raises :class:`UsageError` where there is none for any."""
        room = self.context - len(prompt)
        if room < 1:
            raise UsageError(
                f"the prompt has {len(prompt):,} tokens, the model {self.context:,} positions", "shorten the prompt"
            )
        return room

    def answer(
        self, prompt: Sequence[int], *, max_tokens: int, sampling: Sampling, stop: Sequence[str] = ()
    ) -> Iterator[AnswerChunk]:
        """The answer, a piece a token; the last one says why it is. Raises what :func:`generate` raises, at once."""
        stops = self.style.stops
        tokens = generate(
            self.gpt,
            prompt,
            max_tokens=max_tokens,
            sampling=sampling,
            stops=stops,
            vocabulary=self.tokenizer.vocab_size,
        )
        return _pieces(tokens, stops, TextStream(self.tokenizer.decode, stop))


def _pieces(tokens: Iterator[int], stops: frozenset[int], stream: TextStream) -> Iterator[AnswerChunk]:
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
    """Raise :class:`DataError` for half a surrogate pair: so Python spells a byte of its input that is not UTF-8."""
    wrong = next((place for place, letter in enumerate(text) if "\ud800" <= letter <= "\udfff"), None)
    if wrong is not None:
        raise DataError(f"the text is not UTF-8: character {wrong + 1} is none", "iconv -f latin1 -t utf-8 makes it so")


def ask(
    chat_model: ChatModel, history: list[Message], question: str, answer: Callable[[list[int]], Iterator[AnswerChunk]]
) -> Iterator[str]:
    """One turn of a conversation: the texts of the answer; both sides join ``history`` when it is complete.

    Where the conversation has become too long for the model's positions, its oldest turns are left out. Raises
    :class:`DataError` for a question without words.
    """
    if not question.strip():
        raise DataError("the question is empty", "say something")
    turns = [*history, Message("user", question)]
    prompt = chat_model.prompt(turns)
    while len(prompt) > chat_model.context // 2 and len(turns) > 2:
        turns = [*(turn for turn in turns if turn.role == "system"), *_without_oldest(turns)]
        prompt = chat_model.prompt(turns)
    said = []
    for piece in answer(prompt):
        said.append(piece.text)
        yield piece.text
    history[:] = [*turns, Message("assistant", "".join(said))]


def _without_oldest(turns: Sequence[Message]) -> list[Message]:
    """The turns but for the first question and its answer, and without what the system says."""
    return [turn for turn in turns if turn.role != "system"][2:]
