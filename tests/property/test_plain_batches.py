"""A batch that is read the quick way is read as the careful way reads it, or not at all."""

from __future__ import annotations

from random import Random

import pytest

from aegis import codec, wire, wire_batch
from aegis.errors import InvalidBody

DEEPEST, LARGEST = 8, 5

PARAMS = [
    b"{}", b'{"a":1}', b'{"a":"x","b":[1,2,{"c":null}],"d":true}', b'{"a":1e5}', b'{"a":1e999}',
    b'{"a":-0.0}', b'{"a":123456789012345678901234567890}', b'{"a":' + b"9" * 400 + b"}",
    b'{"a":"\\u0041"}', b'{"a":"\\ud800"}', b'{"a":"\\n"}', '{"é":"漢😀"}'.encode(),
    b'{"a":"\xff"}', b'{"a":"\xed\xa0\x80"}', b'{"a":"[[[[{{{{"}',
    b'{"a":[[[[[[[1]]]]]]]}', b'{"a":[[[[[]]]]]}', b'{"a":{"a":{"a":{"a":{"a":{}}}}}}',
    b'{"a":1,"a":2}', b"null", b"[]", b"5", b'""', b'{"a":NaN}', b'{"a":01}', b'{"a":.5}',
    b'{"a":"\x01"}', b'{"a":1,}', b'{"a" : 1 }', b"{\n}",
]  # fmt: skip
TEXTS = [
    b'"read"',
    b'""',
    '"漢"'.encode(),
    b'"\\u0041"',
    b'"\\ud800"',
    b"null",
    b"5",
    b'"a\\"b"',
    b'"\xc3"',
]
MEMBERS = [
    b'"action_type"',
    b'"target"',
    b'"params"',
    b'"agent_id"',
    b'"type"',
    b'"description"',
    b'"target"',
]
SPOILING = b'{}[]",:\\u0e9-+. \n\xff\x00nt'


def _action(pick: Random) -> bytes:
    members = [b'"action_type":' + pick.choice(TEXTS[:1] * 9 + TEXTS)]
    for name in pick.sample(MEMBERS[1:4] * 3 + MEMBERS, k=pick.randint(0, 3)):
        value = (
            pick.choice(PARAMS[:3] * 4 + PARAMS)
            if name == b'"params"'
            else pick.choice(TEXTS[:1] * 5 + TEXTS)
        )
        members.append(name + b":" + value)
    pick.shuffle(members)
    return b"{" + b",".join(members) + b"}"


def _body(pick: Random) -> bytes:
    actions = [_action(pick) for _ in range(pick.choice([0, 1, 1, 2, 3, LARGEST, LARGEST + 1]))]
    body = (
        b'{"actions":['
        + b",".join(actions)
        + b"]"
        + pick.choice([b"}"] * 9 + [b',"x":1}', b"", b"}}"])
    )
    if pick.random() < 0.3:
        place = pick.randrange(len(body))
        body = body[:place] + bytes([pick.choice(SPOILING)]) + body[place + pick.randint(0, 1) :]
    return body


def _carefully(body: bytes) -> list[wire.Question] | None:
    try:
        items = wire.batch(codec.loads(body, DEEPEST), LARGEST)
        return [wire.question(item, index) for index, item in enumerate(items)]
    except InvalidBody:
        return None


def _quickly(body: bytes) -> list[wire.Question] | None:
    read = wire_batch.plain_batch(body, LARGEST, DEEPEST)
    if read is None:
        return None
    return [
        (kind, target, agent, wire_batch.plain_params(params))
        for kind, target, agent, params in read
    ]


@pytest.mark.parametrize("seed", range(20))
def test_batch_read_quickly_is_the_batch_read_carefully(seed: int) -> None:
    pick = Random(seed)
    read = 0
    for _ in range(1_000):
        body = _body(pick)
        quickly = _quickly(body)
        if quickly is not None:
            read += 1
            carefully = _carefully(body)
            assert carefully is not None, body
            assert quickly == [
                (kind, target, agent, params or {}) for kind, target, agent, params in carefully
            ], body
    assert read > 50
