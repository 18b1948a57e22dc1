from humpback_ray.text.clean import clean


def test_clean_text_holds_nothing_that_arrow_refuses() -> None:
    assert clean("a\ud800b\0c\r\nd\re") == "a?bc\nd\ne"
