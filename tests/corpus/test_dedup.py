import hashlib

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from humpback_ray.corpus.dedup import duplicates


def digest(value: object) -> str:
    return hashlib.sha256(str(value).encode()).hexdigest()


def column(values: list[str]) -> pa.ChunkedArray:
    half = len(values) // 2
    return pa.chunked_array([values[:half], values[half:]], pa.string())


def kept(rows: list[tuple[str, str]]) -> list[int]:
    reasons = duplicates(column([row[0] for row in rows]), column([row[1] for row in rows])).to_pylist()
    assert set(reasons) <= {None, "exact_duplicate"}
    return [index for index, reason in enumerate(reasons) if reason is None]


ROWS = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 5)), max_size=25)


@given(ROWS, st.booleans(), st.randoms(use_true_random=False))
def test_the_smallest_id_of_every_text_stays_in_whatever_order_rows_come(pairs, hexadecimal, chance) -> None:
    name = digest if hexadecimal else str
    texts = {number: chance.randrange(5) for number in range(9)}  # one text per id: ids are hashes of content
    rows = [(name(number)[:32], digest(texts[number])) for number, _ in pairs]
    expected = {text: min(row[0] for row in rows if row[1] == text) for text in {row[1] for row in rows}}
    if not hexadecimal:
        expected = None
    shuffled = rows[:]
    chance.shuffle(shuffled)
    found, again = ({rows[i] for i in kept(rows)}, {shuffled[i] for i in kept(shuffled)})
    assert found == again
    assert len(kept(rows)) == len(found) == len({row[1] for row in rows})
    assert expected is None or found == {(row_id, text) for text, row_id in expected.items()}


@given(ROWS)
def test_no_id_and_no_text_stays_twice_even_where_ids_are_not_unique(pairs) -> None:
    rows = [(digest(number)[:32], digest(text)) for number, text in pairs]
    stay = [rows[index] for index in kept(rows)]
    assert len({row_id for row_id, _ in stay}) == len(stay) == len({text for _, text in stay})


def test_a_record_crawled_twice_stays_exactly_once() -> None:
    assert kept([(digest(1), digest("x")), (digest(1), digest("x")), (digest(2), digest("y"))]) == [0, 2]


def test_an_empty_corpus_has_no_duplicates() -> None:
    empty = pa.chunked_array([], pa.string())
    assert len(duplicates(empty, empty)) == 0


def test_slices_of_larger_arrays_are_read_where_they_lie() -> None:
    ids = pa.array([digest(number) for number in range(6)])
    texts = pa.array([digest(number // 2) for number in range(6)])
    whole = duplicates(pa.chunked_array([ids[2:]]), pa.chunked_array([texts[2:]]))
    assert whole.null_count == 2


def test_columns_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ValueError, match="2 ids for 1 hashes"):
        duplicates(column(["a", "b"]), column(["c"]))
    with pytest.raises(ValueError, match="0 ids and 1 hashes are null"):
        duplicates(column(["a"]), pa.chunked_array([[None]], pa.string()))
