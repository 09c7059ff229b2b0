"""Prompt styles: conversations to tokens, for fine-tuning and chat.

A style is a Jinja template like ``chat_template`` in ``tokenizer_config.json``, so a model's own template, the ones
below and ``transformers`` agree, and a fine-tuned model includes its style. Templates come with models and are not
trusted: they run in Jinja's sandbox. Messages are not trusted either: control tokens are recognised only in the text of
the template, and ``<end_of_turn>`` in a message is plain text.

The answer is tokenised separately from the prompt, as in generation. Imports no torch.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bafogpt.core.errors import DataError, NotFoundError, did_you_mean
from bafogpt.data.messages import Message
from bafogpt.data.tokenizer import Tokenizer

if TYPE_CHECKING:
    import jinja2
    import numpy as np
    from numpy.typing import NDArray

ALPACA = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'system' %}{{ message.content + '\\n\\n' }}"
    "{% elif message.role == 'user' %}"
    "{% if loop.first %}{{ 'Below is an instruction that describes a task' }}"
    "{% if message.input %}{{ ', paired with an input that provides further context' }}{% endif %}"
    "{{ '. Write a response that appropriately completes the request.\\n\\n' }}"
    "{% elif loop.previtem.role == 'assistant' %}{{ '\\n\\n' }}{% endif %}"
    "{{ '### Instruction:\\n' + message.content + '\\n\\n' }}"
    "{% if message.input %}{{ '### Input:\\n' + message.input + '\\n\\n' }}{% endif %}"
    "{% else %}{{ '### Response:\\n' + message.content + eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}"
)
"""Stanford Alpaca's prompt (tatsu-lab/stanford_alpaca, ``train.py``), used for the isiZulu instruction model."""

GEMMA = (
    "{{ bos_token }}{% set first = 0 %}{% set system = '' %}"
    "{% if messages[0].role == 'system' %}"
    "{% set first = 1 %}{% set system = messages[0].content + '\\n\\n' %}{% endif %}"
    "{% for message in messages[first:] %}"
    "{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('user and assistant must take turns, the user first') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\\n' }}"
    "{{ (system if loop.first else '') + (message.content | trim) + '<end_of_turn>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
"""Gemma-2's published template; a system message, which that one rejects, begins the first turn as in Gemma-3."""

PLAIN = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'assistant' %}{{ message.content + eos_token }}"
    "{% else %}{{ message.content + '\\n' }}{% endif %}{% endfor %}"
)
"""Question, line break, answer."""

STYLES = {"alpaca": ALPACA, "chat": GEMMA, "plain": PLAIN}
"""The styles by name; ``chat`` is the template in the tokenizer's folder, if any."""

OPEN, CLOSE = "\ufdd0", "\ufdd1"
"""Marks around the text of a message in a rendered template: Unicode noncharacters, which no text contains."""
_MARKED = re.compile(f"({OPEN}[^{CLOSE}]*{CLOSE})")


@dataclass(frozen=True)
class RenderedPart:
    """Part of a rendered conversation."""

    text: str
    is_template: bool
    """Whether it comes from the template, so that control tokens in it count."""
    is_answer: bool
    """Whether it contributes to the loss."""


@dataclass(frozen=True)
class TokenizedExample:
    """A tokenised conversation."""

    ids: NDArray[np.unsignedinteger[Any]]
    """1-D, as the tokenizer's dtype, with the end token last."""
    answers: tuple[tuple[int, int], ...]
    """[begin, end) of each answer with its end token, which contribute to the loss. In order, not overlapping."""


def load(name: str, tokenizer: Tokenizer) -> PromptStyle:
    """The style ``alpaca``, ``chat`` or ``plain`` for that tokenizer.

    Raises :class:`NotFoundError` for another name, and :class:`DataError` for an invalid template.
    """
    if name not in STYLES:
        known = ", ".join(STYLES)
        raise NotFoundError(f"no prompt style '{name}'{did_you_mean(name, STYLES)}", f"--style is one of {known}")
    own = _template_of(tokenizer) if name == "chat" else None
    return PromptStyle(name, own or STYLES[name], tokenizer)


class PromptStyle:
    """A template and a tokenizer."""

    def __init__(self, name: str, template: str, tokenizer: Tokenizer) -> None:
        self.name = name
        self.template = template
        self._tokenizer = tokenizer
        self._keeps_input = ".input" in template
        spellings = sorted(tokenizer.controls, key=lambda each: (-len(each), each))
        self._controls = re.compile("({})".format("|".join(map(re.escape, spellings)) or r"(?!)"))
        _compiled(template, name)

    @functools.cached_property
    def stops(self) -> frozenset[int]:
        """The tokens that end an answer: the tokenizer's end token, and the template's."""
        turn = self.render([Message("user", "x"), Message("assistant", "x")])
        closing = [part.text for part in turn if part.is_answer and part.is_template]
        found = self._controls.search("".join(closing))
        first = {self._tokenizer.controls[found[0]]} if found else set()
        return frozenset({self._tokenizer.eos_id} | first)

    def render(self, messages: Sequence[Message]) -> list[RenderedPart]:
        """A whole conversation with its answers marked.

        Raises :class:`DataError` where the template rejects it or does not render turns one after another.
        """
        parts: list[RenderedPart] = []
        done = ""
        for index, message in enumerate(messages):
            if message.role != "assistant":
                continue
            for length, generate in ((index, True), (index + 1, False)):
                text = self._apply(messages[:length], generate)
                if not text.startswith(done):
                    what = "a later turn changes what the template writes of earlier ones"
                    raise DataError(f"prompt style {self.name}: {what}", "--style alpaca, or another template")
                parts += _parts(text[len(done) :], is_answer=not generate)
                done = text
        return parts

    def example(self, messages: Sequence[Message]) -> TokenizedExample:
        """A conversation for training. Raises what :meth:`render` raises."""
        return self.examples([messages])[0]

    def examples(self, conversations: Sequence[Sequence[Message]]) -> list[TokenizedExample]:
        """Several conversations, tokenised together for speed."""
        return self._encode([self.render(each) for each in conversations])

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """The ids of the prompt for an answer. Raises :class:`DataError` where the template rejects the messages."""
        (encoded,) = self._encode([list(_parts(self._apply(messages, True), is_answer=False))], ended=False)
        return [int(each) for each in encoded.ids]

    def _encode(self, conversations: Sequence[Sequence[RenderedPart]], *, ended: bool = True) -> list[TokenizedExample]:
        """Ids of rendered conversations; all texts are tokenised at once."""
        import numpy as np

        tokenizer = self._tokenizer
        pieces = [list(self._pieces(parts)) for parts in conversations]
        texts = [text for each in pieces for text, control, _ in each if control is None]
        encoded = iter(tokenizer.encode_batch(texts))
        examples = []
        for each in pieces:
            arrays: list[Any] = []
            answers: list[tuple[int, int]] = []
            if tokenizer.begin and not (each and each[0][1] == tokenizer.bos_id):  # the template leaves it out
                arrays.append(np.array(tokenizer.begin, tokenizer.dtype))
            position = len(arrays)
            for _, control, is_answer in each:
                ids = next(encoded) if control is None else np.array([control], tokenizer.dtype)
                _mark(answers, position, position + len(ids), is_answer)
                position += len(ids)
                arrays.append(ids)
            if ended and (not position or int(arrays[-1][-1]) != tokenizer.eos_id):
                arrays.append(np.array([tokenizer.eos_id], tokenizer.dtype))
                _mark(answers, position, position + 1, bool(each) and each[-1][2])
            joined = np.concatenate(arrays) if arrays else np.empty(0, tokenizer.dtype)
            examples.append(TokenizedExample(joined, tuple(answers)))
        return examples

    def _pieces(self, parts: Sequence[RenderedPart]) -> Iterator[tuple[str, int | None, bool]]:
        """(text, its id if it is a control token, whether it is answer); text between control tokens is one item."""
        run = ""
        is_answer = False
        for part in parts:
            if part.is_answer != is_answer and run:
                yield run, None, is_answer
                run = ""
            is_answer = part.is_answer
            for index, text in enumerate(self._controls.split(part.text) if part.is_template else [part.text]):
                if index % 2:
                    if run:
                        yield run, None, is_answer
                        run = ""
                    yield text, self._tokenizer.controls[text], is_answer
                else:
                    run += text
        if run:
            yield run, None, is_answer

    def _apply(self, messages: Sequence[Message], generate: bool) -> str:
        import jinja2

        given = [self._given(message) for message in messages]
        names = {
            "bos_token": self._tokenizer.spelled(self._tokenizer.bos_id),
            "eos_token": self._tokenizer.spelled(self._tokenizer.eos_id),
        }
        template = _compiled(self.template, self.name)
        try:
            return template.render(messages=given, add_generation_prompt=generate, **names)
        except (jinja2.TemplateError, TypeError, ValueError, OverflowError) as error:
            raise DataError(
                f"prompt style {self.name} refuses these messages: {error}", "--style alpaca, or other messages"
            ) from None

    def _given(self, message: Message) -> dict[str, str]:
        """A message for the template, with its texts marked."""
        if message.input and not self._keeps_input:
            return {"role": message.role, "content": _marked(f"{message.content}\n\n{message.input}")}
        return {"role": message.role, "content": _marked(message.content), "input": _marked(message.input)}


def _mark(answers: list[tuple[int, int]], begin: int, end: int, is_answer: bool) -> None:
    """Append [begin, end) to the answers, or extend the last one if it ends at ``begin``."""
    if is_answer and begin < end:
        if answers and answers[-1][1] == begin:
            begin = answers.pop()[0]
        answers.append((begin, end))


def _marked(text: str) -> str:
    """``text`` between marks; surrounding white space stays outside, so that a template's ``trim`` works."""
    text = text.replace(OPEN, "").replace(CLOSE, "")
    core = text.strip()
    before, _, after = text.partition(core) if core else (text, "", "")
    return f"{before}{OPEN}{core}{CLOSE}{after}" if core else text


def _parts(rendered: str, is_answer: bool) -> Iterator[RenderedPart]:
    """Rendered text split at the marks."""
    for text in _MARKED.split(rendered):
        if text:
            marked = text.startswith(OPEN)
            yield RenderedPart(text[1:-1] if marked else text, not marked, is_answer)


@functools.lru_cache(maxsize=8)
def _compiled(template: str, name: str) -> jinja2.Template:
    """The template as ``transformers`` compiles it. Raises :class:`DataError`."""
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"], undefined=jinja2.Undefined
    )
    environment.globals["raise_exception"] = refuse
    try:
        return environment.from_string(template)
    except jinja2.TemplateError as error:
        raise DataError(f"the template of prompt style {name} is wrong: {error}", "--style alpaca") from None


def _template_of(tokenizer: Tokenizer) -> str | None:
    """The chat template beside a ``tokenizer.json``; the one named ``default`` of several."""
    if tokenizer.file is None:
        return None
    folder = tokenizer.file.parent
    alone, config = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if alone.is_file():
        return alone.read_text(encoding="utf-8")
    if not config.is_file():
        return None
    found = json.loads(config.read_text(encoding="utf-8")).get("chat_template")
    if isinstance(found, list):
        found = next((each.get("template") for each in found if each.get("name") == "default"), None)
    return found if isinstance(found, str) else None
