"""Numbers are compared by value, whatever their form."""

import pytest

from humpback_ray.text.numbers import new_numbers


@pytest.mark.parametrize(
    ("text", "given"),
    [
        ("1,000 dams", "1000 dams"),
        ("1 000 dams", "1,000 dams"),
        ("1.000 Dämme", "1000 Dämme"),
        ("1.5 million", "1,500,000"),
        ("$5k", "$5,000"),
        ("3 dams", "three dams"),
        ("twenty-one dams", "21 dams"),
        ("2,500", "two thousand five hundred"),
        ("120", "one hundred and twenty"),
        ("a hundred fish", "100 fish"),
        ("50 %", "half of them"),
        ("fifty percent", "50%"),
        ("0.5", "50%"),
        ("½ cup", "half a cup"),
        ("1/2 cup", "½ cup"),
        ("May 3, 2020", "2020-05-03"),
        ("2020-05-03", "May 3rd, 2020"),
        ("the 90s", "the 1990s"),
        ("the 3rd weir", "the third weir"),
        ("World War 2", "World War II"),
        ("12 eggs", "a dozen eggs"),
        ("3.50 m", "3.5 m"),
        ("version 3.11.2", "version 3.11.2"),
        ("in 2019 300 fish", "300 fish in 2019"),
        ("３つ", "3"),
        ("1. Dig.\n2. Build.\n3. Fill.", "dig, build, fill"),
        ("**Step 1:** Dig.\n**Step 2:** Build.", "dig and build"),
        ("There are 2 uses:\n- one\n- the other", "uses"),
        ("H2O, UTF-8 and COVID-19", "water"),
        ("one of two ways", "ways"),
    ],
)
def test_a_number_in_another_form_is_not_new(text: str, given: str) -> None:
    assert new_numbers(text, given=given) == []


@pytest.mark.parametrize(
    ("text", "given", "new"),
    [
        ("built in 1850", "built in 1820", ["1850"]),
        ("about 40 % of them", "some of them", ["40 %"]),
        ("forty of them", "some of them", ["forty"]),
        ("two thousand fish", "fish", ["two thousand"]),
        ("1.2 m and 300 m", "1.3 m and 300 m", ["1.2"]),
        ("$1,200", "$1,000 and $200", ["1,200"]),
        ("1. Dig for 7 days.", "dig", ["7"]),
        ("10,000 fish", "1,000 fish", ["10,000"]),
    ],
)
def test_a_number_of_another_value_is_new(text: str, given: str, new: list[str]) -> None:
    assert new_numbers(text, given=given) == new
