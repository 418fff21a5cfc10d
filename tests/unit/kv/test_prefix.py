"""Keys of blocks: equal where keys and values are, different where anything they depend on is."""

from __future__ import annotations

import pytest

from tandem.kv.prefix import KEY_BYTES, BlockKeys, next_key, root_key

BASE = {"adapter": None, "rotation": 0, "dtype": "float32", "salt": None}
ROOT = root_key(**BASE)
TOKENS = list(range(100, 130))


@pytest.mark.parametrize(
    "change",
    [{"adapter": "a"}, {"rotation": 1}, {"dtype": "bfloat16"}, {"salt": "mine"}, {"salt": ""}, {"salt": "None"}],
    ids=str,
)
def test_whatever_blocks_depend_on_changes_all_their_keys(change: dict) -> None:
    other = BlockKeys(root_key(**(BASE | change)), 4).of(TOKENS, 7)
    assert set(other).isdisjoint(BlockKeys(ROOT, 4).of(TOKENS, 7))


def test_parts_of_a_root_cannot_be_moved_into_each_other() -> None:
    assert root_key(**(BASE | {"adapter": "x"})) != root_key(**(BASE | {"salt": "x"}))
    assert root_key(**(BASE | {"dtype": "x', 'y"})) != root_key(**(BASE | {"dtype": "x", "salt": "y"}))


def test_equal_beginnings_have_equal_keys_and_later_blocks_know_all_before_them() -> None:
    changed = [*TOKENS[:9], 7, *TOKENS[10:]]
    keys, others = (BlockKeys(ROOT, 4).of(tokens, 7) for tokens in (TOKENS, changed))
    assert keys[:2] == others[:2]
    assert set(keys[2:]).isdisjoint(others[2:])
    assert len(set(keys)) == 7
    assert all(len(key) == KEY_BYTES for key in keys)


def test_equal_blocks_in_different_places_have_different_keys() -> None:
    assert len(set(BlockKeys(ROOT, 2).of([5] * 12, 6))) == 6


def test_tokens_are_not_run_together() -> None:
    keys = {next_key(ROOT, tokens) for tokens in ([1, 23], [12, 3], [123], [1, 2, 3], [1 << 8, 0], [1, 0])}
    assert len(keys) == 6


def test_keys_of_a_growing_sequence_are_those_of_the_whole() -> None:
    growing, tokens, seen = BlockKeys(ROOT, 4), [], []
    for token in TOKENS:
        tokens.append(token)
        seen.append(growing.of(tokens, len(tokens) // 4))
    whole = BlockKeys(ROOT, 4).of(TOKENS, 7)
    assert seen[-1] == whole
    assert all(keys == whole[: len(keys)] for keys in seen)


def test_fewer_keys_than_known_are_fewer_keys() -> None:
    keys = BlockKeys(ROOT, 4)
    whole = keys.of(TOKENS, 7)
    assert keys.of(TOKENS, 3) == whole[:3]


def test_contents_differ_with_every_token_and_every_length() -> None:
    contents = [BlockKeys(ROOT, 4).content(TOKENS, length) for length in range(1, 30)]
    changed = [BlockKeys(ROOT, 4).content([*TOKENS[: length - 1], 7], length) for length in range(1, 30)]
    assert len({*contents, *changed}) == 58
    assert BlockKeys(ROOT, 4).content(TOKENS[:10], 10) == contents[9]


def test_a_content_looks_no_further_than_its_length() -> None:
    assert BlockKeys(ROOT, 4).content(TOKENS, 10) == BlockKeys(ROOT, 4).content([*TOKENS[:10], 7, 7, 7], 10)
