"""Messages that name options: Python's spelling as strings, and any other by structure."""

import pytest

from kdtw_fast.inputs import named
from kdtw_fast.messages import Message, OptionName
from kdtw_fast.options import GenerateOptions, check_int, check_real


def flag(option: OptionName) -> str:
    return f"--{option}"


def test_a_message_is_pythons_and_spells_its_options_otherwise_when_asked() -> None:
    message = Message("cut it at ", OptionName("length", 3), Message(", or by ", OptionName("cut", True)), ": length")
    assert message == "cut it at length=3, or by cut=True: length"
    assert message.spelled(flag) == "cut it at --length=3, or by --cut=True: length"
    assert message.reworded("it", "length").spelled(flag) == "cut length at --length=3, or by --cut=True: length"


@pytest.mark.parametrize(
    ("name", "value", "kind", "words"),
    [
        ("top_k", -1, ValueError, "top_k must be at least 0, got -1"),
        ("top_k", 2**40, ValueError, "top_k must be at most 2147483647, got 1099511627776"),
        ("seed", -1, ValueError, "seed must be in 0..18446744073709551615, got -1"),
        ("top_p", 1.5, ValueError, "top_p must be in (0, 1], got 1.5"),
        ("max_new_tokens", "x", TypeError, "max_new_tokens must be an integer, got 'x' of type str"),
        ("temperature", "x", TypeError, "temperature must be a number, got 'x' of type str"),
    ],
)
def test_errors_of_options_know_the_option(name: str, value: object, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind) as caught:
        GenerateOptions(**{name: value})
    assert str(caught.value) == words
    assert Message.of(caught.value).spelled(flag) == f"--{words}"


def test_a_label_before_a_message_keeps_its_options() -> None:
    with pytest.raises(ValueError, match=r"^item 3: rows must be at least 1, got 0$") as caught, named("item 3"):
        check_int("rows", 0, 1)
    assert Message.of(caught.value).spelled(flag) == "item 3: --rows must be at least 1, got 0"
    with pytest.raises(TypeError, match=r"^x must be a number, got None of type NoneType$"):
        check_real("x", None, 0)
