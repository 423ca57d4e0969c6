"""Compiles policies in a process of its own, so that no thread that answers requests waits for it.

Parsing ten thousand rules takes half a second, in which Python would let nothing else run. What
comes back is ready to be mapped. Policies that take little are compiled where they are needed: a process
takes longer to start. What they take is known by their size and, while they are read, by the programs
of their regular expressions.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any, BinaryIO

from aegis import codec
from aegis.errors import InvalidBody, NotReady, PolicyError, Problem
from aegis.messages import json_type
from aegis.policy.compiled_cache import CompiledPolicy, PolicyText, compile_policy, pack, unpack
from aegis.policy.loader import LoadedPolicy, decoded_policy, load_text
from aegis.policy.regexes import Searches

__all__ = ["YAML_TYPES", "compile_body", "compile_source", "main", "policy_text"]

YAML_TYPES = frozenset(
    ("application/yaml", "application/x-yaml", "text/yaml", "text/x-yaml", "text/vnd.yaml")
)
SMALL_BYTES = 32 * 1024
"""Up to here a policy is compiled in some milliseconds."""
SMALL_PROGRAMS = 50_000
"""Instructions of regular expressions that are compiled in some milliseconds, too."""
TIMEOUT_S = 60.0
_DOCUMENT_KEYS = ("rules", "defaults")
_NICENESS = 5
_PR_SET_PDEATHSIG = 1
_HEAD = struct.Struct("<QQ")  # sizes of what is said and of the source
_START = "import sys; sys.path.append(sys.argv[1]); from aegis.policy.compile_process import main; main(sys.argv[2:])"


def policy_text(media_type: str, body: bytes, deepest: int) -> str | bytes:
    """The policy's text of a body in any of its three forms.

    Args:
        media_type: What the body is declared as.
        body: YAML; or JSON, with the YAML in it or of the policy's own shape.
        deepest: Limit on the nesting of JSON.

    Raises:
        InvalidBody: It is none of them.
    """
    if media_type.partition(";")[0].strip().lower() in YAML_TYPES:
        if not body:
            raise InvalidBody("the body is empty; send the policy's YAML")
        return body
    value = codec.loads(body, deepest)
    if not isinstance(value, dict):
        raise InvalidBody(f"the body must be an object, not {json_type(value)}")
    if "yaml" in value:
        codec.refuse_repeated(body)  # else the last one would count, unseen
        text = value["yaml"]
        if not isinstance(text, str):
            raise InvalidBody(f"`yaml` must be text, not {json_type(text)}")
        if any(key in value for key in _DOCUMENT_KEYS):
            raise InvalidBody("send either `yaml` or `rules` and `defaults`, not both")
        return text
    if not any(key in value for key in _DOCUMENT_KEYS):
        raise InvalidBody("a policy is missing; send `yaml`, or `rules` and `defaults`")
    return body  # the text itself, so that problems have lines


def compile_body(media_type: str, body: bytes, deepest: int) -> PolicyText:
    """The policy of a body, compiled; a large one in a process of its own.

    Raises:
        InvalidBody: It is no policy's body.
        PolicyError: The policy is refused.
        NotReady: It could not be compiled in time.
    """
    if len(body) <= SMALL_BYTES or not sys.executable:
        loaded = _loaded_here(policy_text(media_type, body, deepest))
        if loaded is not None:
            return PolicyText(loaded.source, compile_policy(loaded))
    return _compiled_apart(media_type, body, deepest)


def compile_source(source: str) -> CompiledPolicy:
    """A policy's text, compiled; a large one in a process of its own.

    Raises:
        PolicyError: The policy is refused.
        NotReady: It could not be compiled in time.
    """
    if len(source) <= SMALL_BYTES or not sys.executable:
        loaded = _loaded_here(source)
        if loaded is not None:
            return compile_policy(loaded)
    return _compiled_apart("application/yaml", source.encode(), 1).compiled


def _loaded_here(text: str | bytes) -> LoadedPolicy | None:
    """A policy that takes little to compile; None: it takes more.

    Raises:
        PolicyError: The policy is refused.
    """
    if not sys.executable:  # there is nowhere else
        return load_text(text)
    searches = Searches(SMALL_PROGRAMS)
    try:
        loaded = load_text(text, searches)
    except PolicyError:
        if searches.is_over:
            return None
        raise
    return None if searches.is_over else loaded


def _compiled_apart(media_type: str, body: bytes, deepest: int) -> PolicyText:
    root = str(Path(__file__).parents[1])
    try:
        # Files, since a pipe takes some KiB at a time: the interpreter would change hands hundreds
        # of times, and requests wait for their turn each time.
        with _file() as given, _file() as made:
            given.write(body)
            given.seek(0)
            command = [root, media_type, str(deepest), str(os.getpid()), str(made.fileno())]
            done = subprocess.run(  # noqa: S603 - what it is told is ours
                [sys.executable, "-P", "-c", _START, *command],
                stdin=given,
                stdout=subprocess.PIPE,  # nothing but its end comes there
                pass_fds=(made.fileno(),),
                env={name: value for name, value in os.environ.items() if name[:6] != "AEGIS_"},
                timeout=TIMEOUT_S,
                check=False,
            )
            if done.returncode:
                raise NotReady(f"the policy could not be compiled: exit code {done.returncode}")
            return _read(made, body)
    except subprocess.TimeoutExpired:
        raise NotReady(f"the policy was not compiled within {TIMEOUT_S:g} s") from None
    except OSError as error:
        raise NotReady(f"the policy could not be compiled: {error}") from None


def _file() -> BinaryIO:
    """A file in memory; a limit on the size of files holds for it too."""
    return open(os.memfd_create("aegis-policy"), "w+b")  # buffered: it writes all, or says why not


def _read(made: BinaryIO, body: bytes) -> PolicyText:
    """What the process has made of a body."""
    made.seek(0)
    said_bytes, source_bytes = _HEAD.unpack(made.read(_HEAD.size))
    said: Any = codec.loads(made.read(said_bytes), 8)
    match said["outcome"]:
        case "refused":
            raise PolicyError([Problem(*problem) for problem in said["problems"]])
        case "no policy":
            raise InvalidBody(said["error"], said["code"])
        case _:
            pass
    source = made.read(source_bytes) if source_bytes else body
    return PolicyText(decoded_policy(source), unpack(made.read()))


def main(arguments: list[str]) -> None:
    """Compile what standard input has.

    Args:
        arguments: The body's media type, the limit on its nesting, the process that asks, and the
            file to write to.
    """
    media_type, deepest, parent, made = arguments
    # A signal to the whole group is meant for the server, which lets what was asked come to its end;
    # but this must not outlive it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):
        return
    os.nice(_NICENESS)
    gc.disable()  # there are no cycles, and looking for them takes three times the time
    body = sys.stdin.buffer.read()
    said: dict[str, Any] = {"outcome": "compiled"}
    source = packed = b""
    try:
        text = decoded_policy(policy_text(media_type, body, int(deepest)))
        packed = pack(compile_policy(load_text(text)))
        written = text.encode()
        source = b"" if written == body else written
    except PolicyError as error:
        said = {
            "outcome": "refused",
            "problems": [[one.message, one.line, one.rule, one.key] for one in error.problems],
        }
    except InvalidBody as error:
        said = {"outcome": "no policy", "error": str(error), "code": error.code}
    head = codec.dumps(said)
    try:
        with open(int(made), "wb") as output:
            output.writelines((_HEAD.pack(len(head), len(source)), head, source, packed))
    except OSError as error:
        sys.exit(f"the compiled policy cannot be handed over: {error}")
    os._exit(0)  # all that was made is given back at once, not piece by piece
