"""Every error has a face, survives a process border, and says what to do."""

import errno

import pytest

from forge_mcp import errors
from forge_mcp.errors import FACES, ForgeError, GateRefused, OutOfSpace, face_of, from_os_error

KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, ForgeError)
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_has_a_row_in_the_table_and_a_code_of_its_own(kind: type[ForgeError]) -> None:
    assert kind in FACES
    assert [other for other in KINDS if other.code == kind.code] == [kind]


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_is_drawn_in_the_docstring(kind: type[ForgeError]) -> None:
    assert f"{kind.__name__} " in (errors.__doc__ or "")


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_survives_the_way_through_json(kind: type[ForgeError]) -> None:
    error = kind("m", cause="c", next_step="n")
    again = errors.from_dict(error.as_dict())
    assert type(again) is kind
    assert again.as_dict() == error.as_dict()


def test_the_exit_codes_are_those_of_the_contract() -> None:
    assert face_of(ForgeError("x")).exit_code == 1
    assert face_of(errors.BadInput("x")).exit_code == 2
    assert face_of(GateRefused("x")).exit_code == 3
    assert face_of(errors.Cancelled("x")).exit_code == 130


def test_an_unlisted_subclass_takes_its_parents_row() -> None:
    class Special(errors.NotFound):
        pass

    assert face_of(Special("x")) == FACES[errors.NotFound]


def test_text_names_the_cause_and_the_next_step() -> None:
    assert str(ForgeError("m", cause="c", next_step="n")) == "m\nCause: c\nNext: n"
    assert str(ForgeError("m")) == "m"


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, OutOfSpace),
        (errno.EDQUOT, OutOfSpace),
        (errno.EACCES, errors.BadInput),
        (errno.EROFS, errors.BadInput),
        (errno.EIO, ForgeError),
    ],
)
def test_os_errors_become_words(number: int, kind: type[ForgeError]) -> None:
    error = from_os_error(OSError(number, "reason", "/some/file"), "write the corpus")
    assert type(error) is kind
    assert "write the corpus" in error.message
    assert "/some/file" in error.message
    assert error.next_step
