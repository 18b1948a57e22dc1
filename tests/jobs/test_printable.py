"""No outside text moves a terminal's cursor, sets its title or reverses its letters."""

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs import console
from jobs.printable import printable


@given(st.text())
def test_printable_text_stays_and_control_characters_are_escaped(text: str) -> None:
    shown = printable(text)
    assert all(sign.isprintable() or sign in "\t\n" or sign.isspace() or ord(sign) > 0x9F for sign in shown)
    assert printable(shown) == shown
    if text.isascii() and text.isprintable():
        assert shown == text


def test_well_known_escape_sequences() -> None:
    assert printable("\x1b[2J\x1b]0;title\x07 a\tb\n\u202ecod") == r"\x1b[2J\x1b]0;title\x07 a" + "\tb\n" + r"\u202ecod"


def test_lines_tables_and_logs_are_printable(capsys: pytest.CaptureFixture[str]) -> None:
    console.say("root\x1b[2J")
    out = console.Table("file")
    out.add_row("[red]\x1b]0;x\x07")
    console.console.print(out)
    console.logs()
    try:
        logging.getLogger("humpback_ray.test").warning("shard %s", "\x1b[31m")
    finally:
        logging.getLogger("humpback_ray").handlers.clear()
        logging.getLogger("humpback_ray").propagate = True
        logging.getLogger("jobs").handlers.clear()
        logging.getLogger("jobs").propagate = True
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err
    assert r"root\x1b[2J" in said.out
    assert r"[red]\x1b]0;x\x07" in said.out
    assert r"shard \x1b[31m" in said.err
