import gzip
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from humpback_ray.corpus.readers.base import Inflated


def read_all(data: bytes) -> tuple[bytes, str | None]:
    source = Inflated(io.BytesIO(data))
    return b"".join(iter(source.read, b"")), source.fault


@given(st.lists(st.binary(max_size=200), max_size=5), st.integers(0, 40))
def test_gzip_members_come_back_joined_also_before_zero_padding(parts: list[bytes], zeros: int) -> None:
    packed = b"".join(gzip.compress(part) for part in parts)
    assert read_all(packed + b"\0" * zeros if parts else b"") == (b"".join(parts), None)


@given(st.binary(min_size=1, max_size=300), st.data())
def test_a_gzip_stream_cut_anywhere_is_truncated_and_gives_a_prefix(content: bytes, data: st.DataObject) -> None:
    packed = gzip.compress(content)
    cut = data.draw(st.integers(2, len(packed) - 1))
    got, fault = read_all(packed[:cut])
    assert content.startswith(got)
    assert fault == "truncated"


@given(st.binary(max_size=300))
def test_any_bytes_end(data: bytes) -> None:
    read_all(data)
    read_all(b"\x1f\x8b\x08" + data)


def test_damage_and_trailing_garbage_are_corrupt() -> None:
    packed = bytearray(gzip.compress(bytes(range(256)) * 20))
    packed[-6] ^= 1
    assert read_all(bytes(packed))[1] == "corrupt"
    assert read_all(gzip.compress(b"fine") + b"garbage") == (b"fine", "corrupt")


def test_a_bomb_is_returned_in_bounded_pieces() -> None:
    source = Inflated(io.BytesIO(gzip.compress(b"a" * 50_000_000)))
    assert max(len(piece) for piece in iter(source.read, b"")) <= 256 * 1024


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_lines_survive_the_borders_of_pieces_and_long_ones_are_cut(pack) -> None:
    lines = [b"x" * 300_000, b"", b"short", b"y" * 900_000]
    source = Inflated(io.BytesIO(pack(b"\n".join(lines))))
    assert list(source.lines(500_000)) == [lines[0], b"", b"short", b"y" * 500_001]
