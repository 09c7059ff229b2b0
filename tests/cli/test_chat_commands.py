"""generate, chat and serve, as they are typed."""

from __future__ import annotations

import io
import json
import socket

import pytest

from bafogpt.core.errors import ExitCode
from tests.talking import make_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(make_model(tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture(scope="module")
def wordless(tmp_path_factory):
    """A model without a tokenizer, as a run on bytes leaves one."""
    folder = make_model(tmp_path_factory.mktemp("model") / "wordless")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    return str(folder)


def test_generate_shows_the_text_or_an_object_with_it(cli, model):
    words = ("generate", model, "--prompt", "Namhlanje", "--max-tokens", "20", "--seed", "3")
    shown, told = cli(*words), cli(*words, "--json")
    record = json.loads(told.out)

    assert (shown.code, told.code) == (0, 0)
    assert shown.out == record["text"] + "\n"
    assert (record["finish"], record["prompt_tokens"]) == ("length", 9)  # its tokenizer adds no <bos>


def test_chat_answers_every_line_of_stdin(cli, model, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("Sawubona\nUnjani?\n\nnot read\n"))

    ran = cli("chat", model, "--max-tokens", "8", "--temperature", "0", "--system", "Phendula ngesiZulu.")

    assert ran.code == 0
    assert "tiny, 512 tokens of context" in ran.err
    assert len(ran.out) > 2


@pytest.mark.parametrize("words", [("generate", "--prompt", "Namhlanje"), ("chat",), ("serve",)], ids=lambda w: w[0])
def test_a_folder_without_a_tokenizer_wants_one(cli, wordless, words):
    ran = cli(words[0], wordless, *words[1:], *(("--port", "0") if words[0] == "serve" else ()))

    assert ran.code == ExitCode.FAILURE
    assert ran.err == (
        f"error: {wordless} has no tokenizer.json\n"
        " hint: --tokenizer bytes, or --tokenizer FOLDER with a tokenizer.json\n"
    )


def test_generate_and_chat_talk_with_the_tokenizer_that_is_named(cli, wordless, model, monkeypatch):
    words = ("generate", wordless, "--prompt", "Namhlanje", "--max-tokens", "20", "--seed", "3", "--json")
    monkeypatch.setattr("sys.stdin", io.StringIO("Sawubona\n"))

    by_bytes, by_folder = cli(*words, "--tokenizer", "bytes"), cli(*words, "--tokenizer", model)
    chat = cli("chat", wordless, "--tokenizer", "bytes", "--max-tokens", "8", "--temperature", "0")

    assert json.loads(by_bytes.out)["prompt_tokens"] == 9  # the bytes
    assert json.loads(by_folder.out)["text"] == json.loads(cli("generate", model, *words[2:]).out)["text"]
    assert (chat.code, len(chat.out) > 2) == (0, True)


def test_serve_answers_with_the_tokenizer_that_is_named(cli, wordless, monkeypatch):
    served = []
    monkeypatch.setattr(
        "bafogpt.serve.server.serve", lambda chat_model, listening, *_: served.append((chat_model, listening))
    )

    ran = cli("serve", wordless, "-t", "bytes", "--port", "0")
    ((chat_model, listening),) = served
    listening.close()

    assert (ran.code, chat_model.tokenizer.name) == (0, "bytes")


@pytest.mark.parametrize("locale", ["strict", "surrogateescape"])
@pytest.mark.parametrize("words", [("generate", "--prompt", "-"), ("chat",)], ids=["generate", "chat"])
def test_bytes_that_are_not_text_are_refused(cli, model, monkeypatch, words, locale):
    given = io.TextIOWrapper(io.BytesIO(b"Sawubona \xff\xfe\n"), encoding="utf-8", errors=locale)
    monkeypatch.setattr("sys.stdin", given)

    ran = cli(words[0], model, *words[1:], "--max-tokens", "4")

    error, hint = ran.err.strip().splitlines()[-2:]
    assert ran.code == ExitCode.FAILURE
    assert error.startswith("error: ") and "is not UTF-8" in error and "10" in error
    assert hint.startswith(" hint: ")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("generate", "MODEL", "--prompt", "x \udcff"), ExitCode.FAILURE, "the text is not UTF-8 at character 3"),
        (
            ("generate", "MODEL", "--prompt", "x", "--max-tokens", "1000000000000"),
            ExitCode.USAGE,
            "do not fit into the",
        ),
        (("generate", "nowhere", "--prompt", "x"), ExitCode.FAILURE, "no model folder at nowhere"),
        (("generate", "MODEL", "--prompt", "x", "--max-tokens", "600"), ExitCode.USAGE, "do not fit into the model's"),
        (("generate", "MODEL", "--prompt", "x" * 600), ExitCode.USAGE, "the prompt has 600 tokens, the model 512"),
        (("generate", "MODEL", "--prompt", "x", "--top-p", "0"), ExitCode.USAGE, "top_p is 0.0; above 0"),
        (("generate", "MODEL", "--prompt", "x", "--dtype", "float31"), ExitCode.USAGE, "did you mean 'float32'?"),
        (("chat", "MODEL", "--style", "alpacca"), ExitCode.FAILURE, "did you mean 'alpaca'?"),
        (("serve", "MODEL", "--api-key-env", "NOT_SET"), ExitCode.AUTH, "NOT_SET is not set"),
        (("serve", "MODEL", "--host", "0.0.0.0"), ExitCode.USAGE, "on 0.0.0.0 anybody could use the model"),  # noqa: S104
    ],
)
def test_what_cannot_be_done_is_said(cli, model, words, code, message):
    ran = cli(*(model if word == "MODEL" else word for word in words))

    assert ran.code == code
    assert message in ran.err


def test_a_port_that_is_taken_is_said(cli, model):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ran = cli("serve", model, "--port", str(taken.getsockname()[1]))

    assert ran.code == ExitCode.USAGE
    assert "cannot listen on 127.0.0.1" in ran.err


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(cli, tmp_path):
    small = str(make_model(tmp_path / "small", vocab_size=264))

    ran = cli("generate", small, "--prompt", "x", "--tokenizer", "bytes")

    assert ran.code == ExitCode.USAGE
    error, hint = ran.err.splitlines()[-2:]
    assert error == f"error: {small}: the tokenizer bytes has 320 ids, the model 264"
    assert hint.startswith(" hint: use the tokenizer that the model was trained with")
