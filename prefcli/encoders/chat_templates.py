"""Renders the chat template of an untrusted model: transformers' sandbox, in a process of its own, with limits.

A chat template is a program in Jinja. The sandbox keeps it from files and processes, but not from loops that do not
end or texts that fill the memory; a child process with limits does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence

from prefcli.errors import ModelError, one_line

MAX_TEMPLATE_CHARACTERS = 200_000
"""The longest chat templates on the hub, those of models that call tools, have about 20,000."""
MAX_RENDERED_CHARACTERS = 1_000_000
"""Of all conversations together."""
MAX_SECONDS = 60
"""Most of it is for the child's imports on a busy machine; rendering takes milliseconds."""
MAX_BYTES = 4 << 30
"""Of address space, most of which the imported libraries reserve."""

_CHILD = "import sys; sys.path[:] = {path!r}; from prefcli.encoders.chat_templates import run_child; run_child()"

Message = dict[str, str]


def render(
    template: str, conversations: Sequence[Sequence[Message]], special_tokens: dict[str, str], where: str
) -> list[str]:
    """Each conversation as text, as ``apply_chat_template(tokenize=False)`` of a tokenizer gives it.

    Parameters
    ----------
    template:
        The tokenizer's chat template.
    conversations:
        Messages with ``role`` and ``content``.
    special_tokens:
        The tokenizer's, by name: ``bos_token``, ``eos_token``.
    where:
        Names the model in an error.

    Raises
    ------
    ModelError
        If the template fails, takes too long, or writes too much.
    """
    if len(template) > MAX_TEMPLATE_CHARACTERS:
        raise _error(f"has {len(template):,} characters, at most {MAX_TEMPLATE_CHARACTERS:,} are read", where)
    request = {"template": template, "conversations": list(map(list, conversations)), "special_tokens": special_tokens}
    try:
        done = subprocess.run(
            [sys.executable, "-c", _CHILD.format(path=sys.path)],
            input=json.dumps(request).encode(),
            capture_output=True,
            timeout=MAX_SECONDS,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"},
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise _error(f"did not end within {MAX_SECONDS} seconds", where) from None
    try:
        answer = json.loads(done.stdout)
    except ValueError:  # the child was killed, or could not even report
        raise _error("could not be rendered within the limits of memory and length", where) from None
    if "error" in answer:
        raise _error(f"failed: {answer['error']}", where)
    return [str(text) for text in answer["texts"]]


def _error(what: str, where: str) -> ModelError:
    return ModelError(
        f"the tokenizer's chat template {what}", where=where, hint="Leave it unused: --template tokens, or words."
    )


def run_child() -> None:
    """What the child process does: a request on standard input, an answer on standard output, both JSON."""
    import resource

    from transformers.utils.chat_template_utils import render_jinja_template

    request = json.load(sys.stdin)
    if sys.platform == "linux":  # macOS does not enforce it
        resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))
    try:
        rendered = render_jinja_template(
            conversations=request["conversations"], chat_template=request["template"], **request["special_tokens"]
        )
        texts = rendered[0] if isinstance(rendered, tuple) else rendered
        if sum(map(len, texts)) > MAX_RENDERED_CHARACTERS:
            raise ValueError(f"it writes more than {MAX_RENDERED_CHARACTERS:,} characters")
        answer = {"texts": texts}
    except MemoryError:
        answer = {"error": "out of memory"}
    except Exception as error:  # untrusted template: any error of Jinja or of what it calls
        answer = {"error": one_line(error)}
    json.dump(answer, sys.stdout)
