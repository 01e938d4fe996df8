"""`context.session` is a dict, or the author's dataclass, checked on its way in and out."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import date, datetime
from enum import Enum, StrEnum
from typing import Any, ClassVar, Literal, NamedTuple, Optional, TypedDict

import pytest

from actorbot._state.codec import decode_state, encode_state
from actorbot._state.document import from_document, to_document
from actorbot._state.typed import SessionShape
from actorbot._state.values import UndecodableError
from actorbot.errors import ConfigError, NotEncodableError, SessionTooLargeError


@dataclass
class Item:
    sku: str
    price: float = 0.0


@dataclass
class Node:
    name: str = ""
    next: Node | None = None


@dataclass
class Profile:
    kind: ClassVar[str] = "profile"
    nickname: str | None = None
    visits: int = 0
    born: Optional[date] = None  # noqa: UP045 - authors write it
    color: Literal["red", "blue", 3] = "red"
    cart: list[Item] = field(default_factory=list)
    by_name: dict[str, Item] = field(default_factory=dict)
    place: tuple[int, str] = (0, "")
    path: tuple[int, ...] = ()
    tags: set[str] = field(default_factory=set)
    flags: frozenset[int] = frozenset()
    best: Item | str | None = None
    head: Node = field(default_factory=Node)
    anything: Any = None
    bare: dict = field(default_factory=dict)  # type: ignore[type-arg]
    rows: list[list[int]] = field(default_factory=list)


@pytest.fixture(scope="module")
def shape() -> SessionShape:
    return SessionShape(Profile)


FULL = Profile(
    nickname="Ann",
    visits=3,
    born=date(2000, 2, 29),
    color=3,
    cart=[Item("a", 1.5), Item("b", 2)],
    by_name={"a": Item("a")},
    place=(1, "x"),
    path=(1, 2, 3),
    tags={"x"},
    flags=frozenset({1}),
    best=Item("c"),
    head=Node("1", Node("2", Node("3"))),
    anything=[1, {"a": (2,)}],
    bare={"a": 1},
    rows=[[1], []],
)


def test_a_new_session_is_the_dataclass_with_its_defaults(shape):
    assert shape.load({}) == Profile()
    assert shape.load({}).cart is not shape.load({}).cart


def test_a_dataclass_comes_back_equal_from_the_store(shape):
    stored = decode_state(encode_state(shape.dump(FULL), 10_000))

    assert stored["cart"] == [{"sku": "a", "price": 1.5}, {"sku": "b", "price": 2}]
    assert stored["head"]["next"]["next"] == {"name": "3", "next": None}
    assert shape.load(stored) == FULL


def test_fields_that_were_added_since_take_their_defaults(shape):
    assert shape.load({"nickname": "Ann", "cart": [{"sku": "a"}]}) == Profile(nickname="Ann", cart=[Item("a")])


WRONG: list[tuple[str, Any, str, str]] = [
    ("visits", "3", ".visits", "expected int, found str"),
    ("visits", True, ".visits", "expected int, found bool"),
    ("visits", None, ".visits", "expected int, found NoneType"),
    ("nickname", 5, ".nickname", "found int"),
    ("born", "2000-02-29", ".born", "found str"),
    ("color", "green", ".color", "expected one of"),
    ("color", 3.0, ".color", "found another float"),
    ("cart", ({"sku": "a"},), ".cart", "expected list, found tuple"),
    ("by_name", {"x": 1}, ".by_name['x']", "found int"),
    ("place", (1,), ".place", "expected 2 items, found 1"),
    ("place", ("x", 1), ".place[0]", "expected int"),
    ("path", (1, "x"), ".path[1]", "expected int"),
    ("tags", ["x"], ".tags", "expected set"),
    ("flags", {1}, ".flags", "expected frozenset"),
    ("best", 5, ".best", "found int"),
    ("bare", [], ".bare", "expected dict"),
    ("rows", [[1], [2, "x"]], ".rows[1][1]", "expected int"),
]


@pytest.mark.parametrize(("name", "value", "path", "reason"), WRONG)
def test_a_stored_value_of_the_wrong_type_is_refused_by_name(shape, name, value, path, reason):
    with pytest.raises(UndecodableError) as caught:
        shape.load({name: value})

    assert str(caught.value).startswith(f"session{path}: ")
    assert reason in str(caught.value)


@pytest.mark.parametrize(("name", "value", "path", "reason"), [row for row in WRONG if row[0] != "by_name"])
def test_a_value_that_could_not_be_loaded_again_is_not_stored(shape, name, value, path, reason):
    with pytest.raises(NotEncodableError) as caught:
        shape.dump(dataclasses.replace(Profile(), **{name: value}))

    assert caught.value.path == f"session{path}"
    assert reason in caught.value.reason


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cart": [{"sku": "a"}, {"sku": 5}]}, "session.cart[1].sku: expected str, found int"),
        ({"head": {"next": {"next": {"name": 5}}}}, "session.head.next.next.name: expected str, found int"),
        ({"cart": [{"price": 1.0}]}, "session.cart[0]: Item.__init__() missing"),
        ({"cart": [{"sku": "a", "colour": 1}]}, "session.cart[0]: Item has no field 'colour'"),
        ({"cart": ["a"]}, "session.cart[0]: expected dict, found str"),
        ({"nick": "Ann"}, "session: Profile has no field 'nick'"),
        ({"kind": "x"}, "session: Profile has no field 'kind'"),
    ],
)
def test_what_is_wrong_deep_inside_is_found(shape, values, message):
    with pytest.raises(UndecodableError) as caught:
        shape.load(values)

    assert str(caught.value).startswith(message)


def test_a_dataclass_in_a_dataclass_must_be_of_its_own_type(shape):
    with pytest.raises(NotEncodableError, match="expected Item, found dict") as caught:
        shape.dump(Profile(cart=[{"sku": "a"}]))  # type: ignore[list-item]

    assert caught.value.path == "session.cart[0]"


def test_a_handler_cannot_hand_back_something_else(shape):
    with pytest.raises(NotEncodableError, match="expected Profile, found dict"):
        shape.dump({})


def test_dataclasses_in_a_circle_or_too_deep_are_refused_without_recursion():
    shape = SessionShape(Node)
    circle = Node()
    circle.next = circle
    deep = Node()
    for _ in range(100_000):
        deep = Node("", deep)

    for session in (circle, deep):
        with pytest.raises(SessionTooLargeError, match="64 levels") as caught:
            shape.dump(session)
        assert caught.value.limit == 64
    while deep.next is not None:  # piece by piece: freeing such a chain at once may overflow the stack
        deep = deep.next


def test_what_a_dataclass_computes_or_forbids_itself_is_respected():
    @dataclass
    class Account:
        balance: int = 0
        log: list[str] = field(default_factory=list, init=False)

        def __post_init__(self) -> None:
            if self.balance < 0:
                raise ValueError("overdrawn")

    shape = SessionShape(Account)
    account = shape.load({"balance": 1, "log": ["opened"]})

    assert (account.balance, account.log) == (1, ["opened"])
    with pytest.raises(UndecodableError, match="session: overdrawn"):
        shape.load({"balance": -1})


def test_frozen_and_slotted_dataclasses_can_be_sessions():
    @dataclass(frozen=True, slots=True)
    class Point:
        x: int = 0
        y: int = field(default=0, init=False)

    shape = SessionShape(Point)

    assert shape.dump(shape.load({"x": 1, "y": 2})) == {"x": 1, "y": 2}


def test_a_set_of_dataclasses_is_refused_when_it_is_stored():
    @dataclass(frozen=True)
    class Point:
        x: int = 0

    made = dataclasses.make_dataclass("Made", [("points", set[Point], field(default_factory=set))])
    shape = SessionShape(made)

    assert shape.dump(shape.load({})) == {"points": set()}
    with pytest.raises(NotEncodableError, match="unhashable") as caught:
        shape.dump(made(points={Point(1)}))
    assert caught.value.path == "session.points"


def made_of(annotation: Any) -> type:
    return dataclasses.make_dataclass("Made", [("value", annotation, None)])


@pytest.mark.parametrize(
    ("session_type", "reason"),
    [
        (list, "dict or a dataclass"),
        (OrderedDict, "dict or a dataclass"),
        (dict[str, int], "dict or a dataclass"),
        (Profile(), "dict or a dataclass"),
        (None, "dict or a dataclass"),
        (Item, "a default for the field 'sku'"),
        (made_of(object()), "annotations"),
        (made_of(complex), "annotations"),
        (made_of(list[complex]), "annotations"),
        (made_of(int | complex), "annotations"),
        (made_of(dict[int, str]), "keys of type str"),
        (made_of("NoSuchName"), "annotations that can be resolved"),
    ],
)
def test_a_session_type_that_cannot_work_is_refused_at_once(session_type, reason):
    with pytest.raises(ConfigError, match=reason) as caught:
        SessionShape(session_type)

    assert caught.value.field == "session_type"


# --- one of several types -----------------------------------------------------------------------


@dataclass
class Cat:
    name: str = ""


@dataclass
class Dog:
    name: str = ""


@dataclass
class Kitten(Cat):
    weeks: int = 0


@dataclass
class Pair:
    first: Cat | Dog | None = None
    second: Pair | Cat | None = None


def back_from_the_store(session: Any) -> Any:
    """The same session after a turn, through bytes and through a document."""
    shape = SessionShape(type(session))
    values = decode_state(encode_state(shape.dump(session), 10_000))
    assert from_document(to_document(values)) == values
    return shape.load(values)


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (Cat | Dog, Dog("Rex")),
        (Dog | Cat | None, Cat("Tom")),
        (Cat | Dog | None, None),
        (Cat | Kitten, Kitten("Tom")),
        (Kitten | Cat, Cat("Tom")),
        (list[Cat | Dog], [Dog(), Cat(), Dog()]),
        (list[Cat] | list[Dog], [Dog(), Dog()]),
        (list[Cat] | list[Dog] | None, []),
        (list[Cat | Kitten] | list[Dog | Kitten], [Dog(), Kitten()]),
        (dict[str, Cat | Dog], {"a": Dog(), "b": Cat()}),
        (dict[str, Cat] | dict[str, Dog], {"$type": Dog()}),
        (tuple[Cat | Dog, int], (Dog(), 1)),
        (tuple[Cat, ...] | tuple[Dog, ...], (Dog(),)),
        (Cat | list[Dog], [Dog()]),
        (Cat | str | list[int], Cat("Tom")),
        (Pair | Cat, Pair(Dog(), Pair(Cat(), Cat()))),
        (dict[str, Any], {"$type": "Cat", "name": 5}),
        (date | datetime, datetime(2020, 1, 1)),  # noqa: DTZ001
        (date | datetime, date(2020, 1, 1)),
        (float | int, 1),
        (float | int, 1.0),
        (list[float], [1, 2.0]),
        (bool | int, True),
        (int | bool, 1),
        (list[str] | tuple[str, ...], ("a",)),
        (set[int] | frozenset[int], frozenset({1})),
        (Literal[1, True, "1"], True),
        (str | bytes, b"1"),
    ],
    ids=repr,
)
def test_one_of_several_types_comes_back_equal_and_of_the_same_type(annotation, value):
    made = dataclasses.make_dataclass("Made", [("value", annotation, None)])

    back = back_from_the_store(made(value)).value

    assert (back, repr(back)) == (value, repr(value))  # repr: 1, 1.0 and True are equal


@dataclass
class Old:
    animal: Dog | Kitten | Cat | None = None
    several: list[Cat] | list[Dog] = field(default_factory=list)


@pytest.mark.parametrize(
    ("values", "session"),
    [
        ({"animal": {"name": "Tom", "weeks": 3}}, Old(Kitten("Tom", 3))),
        ({"animal": {"name": "Tom"}}, Old(Dog("Tom"))),  # the first, as it was when it was written
        ({"animal": {"weeks": 3}}, Old(Kitten("", 3))),  # written before Kitten had a name
        ({"several": [{"name": "Tom"}, {}]}, Old(None, [Cat("Tom"), Cat()])),
        ({"animal": None, "several": []}, Old()),
    ],
)
def test_what_was_stored_before_types_were_named_in_it_is_still_read(values, session):
    assert SessionShape(Old).load(values) == session


def test_a_type_that_stands_alone_is_stored_as_before_and_reads_what_named_it():
    made = dataclasses.make_dataclass("Made", [("pet", Cat | None, None)])

    assert SessionShape(made).dump(made(Cat("Tom"))) == {"pet": {"name": "Tom"}}
    assert SessionShape(made).load({"pet": {"$type": "Cat", "name": "Tom"}}) == made(Cat("Tom"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"first": {"$type": "Bird"}}, "session.first: expected .*Cat | .*Dog | None, found Bird"),
        ({"first": {"$type": "Dog", "name": 5}}, "session.first.name: expected str, found int"),
        ({"first": {"$type": 5}}, "session.first: expected"),
        (
            {"second": {"$type": "Pair", "first": {"$type": "Cat", "wings": 2}}},
            "session.second.first: Cat has no field",
        ),
    ],
)
def test_a_stored_type_that_is_none_of_them_is_refused_by_name(values, message):
    with pytest.raises(UndecodableError, match=message):
        SessionShape(Pair).load(values)


def test_a_subclass_is_not_stored_as_its_base():
    made = dataclasses.make_dataclass("Made", [("pet", Cat, field(default_factory=Cat))])

    with pytest.raises(NotEncodableError, match="expected Cat, found Kitten; annotate it with its own class") as caught:
        SessionShape(made).dump(made(Kitten()))
    assert caught.value.path == "session.pet"


class Color(Enum):
    RED = 1


class Size(StrEnum):
    BIG = "big"


class Point(NamedTuple):
    x: int = 0


class Fields(TypedDict):
    x: int


Other = dataclasses.make_dataclass("Cat", [("color", str, "")])


@pytest.mark.parametrize(
    ("annotation", "instead"),
    [
        (Cat | dict, "a dataclass in place of dict: beside Cat"),
        (dict[str, int] | Cat, "a dataclass in place of dict: beside Cat"),
        (list[Cat] | list[dict[str, int]], "a dataclass in place of dict"),
        (Cat | Any, "in place of Any, beside Cat"),
        (list[Cat] | list, "in place of Any, beside Cat"),
        (list[dict[str, Cat] | dict], "in place of Any, beside Cat"),
        (Cat | Other, "another name for one of the two dataclasses that are called Cat"),
        (Color, "the member's value"),
        (list[Size], "the member's value"),
        (Literal[Color.RED], "a Literal of text, numbers or bytes"),
        (Point, "write tuple"),
        (Fields, "write dict"),
        (OrderedDict[str, int], "write dict"),
    ],
    ids=repr,
)
def test_types_that_would_come_back_as_others_are_refused_at_once_with_what_to_write_instead(annotation, instead):
    made = dataclasses.make_dataclass("Made", [("value", annotation, None)])
    outer = dataclasses.make_dataclass("Outer", [("inner", made, field(default_factory=made))])

    with pytest.raises(ConfigError, match=instead) as caught:
        SessionShape(outer)

    assert caught.value.field == "session_type"
    assert "in the field Made.value" in str(caught.value)


def test_a_field_that_has_no_value_any_more_is_named():
    made = dataclasses.make_dataclass("Made", [("tags", list[str], field(default_factory=list))])
    session = made()
    del session.tags

    with pytest.raises(NotEncodableError, match="has no value") as caught:
        SessionShape(made).dump(session)
    assert caught.value.path == "session.tags"
    assert type(caught.value.__cause__) is AttributeError


# --- code of the author's own --------------------------------------------------------------------


def refuse(items: int) -> None:
    if items > 3:
        raise LookupError("no more than 3 items")


@dataclass
class ByPostInit:
    items: int = 0

    def __post_init__(self) -> None:
        refuse(self.items)


@dataclass
class ByParent(ByPostInit):
    name: str = ""


@dataclass
class ByInit:
    items: int = 0

    def __init__(self, items: int = 0) -> None:
        refuse(items)
        self.items = items


@dataclass
class ByNew:
    items: int = 0

    def __new__(cls, items: int = 0) -> ByNew:
        refuse(items)
        return super().__new__(cls)


class Checking(type):
    def __call__(cls, items: int = 0) -> Any:
        refuse(items)
        return super().__call__(items)


@dataclass
class ByMetaclass(metaclass=Checking):
    items: int = 0


class Few:
    """A descriptor in place of a field."""

    def __get__(self, instance: Any, owner: type) -> int:
        return 0 if instance is None else vars(instance).get("_items", 0)

    def __set__(self, instance: Any, value: int) -> None:
        if getattr(instance, "is_made", False) is False:
            refuse(value)
        vars(instance)["_items"] = value


@dataclass
class ByDescriptor:
    items: int = Few()  # type: ignore[assignment]


OWN = [ByPostInit, ByParent, ByInit, ByNew, ByMetaclass, ByDescriptor]


@pytest.mark.parametrize("kind", OWN)
@pytest.mark.parametrize("where", ["itself", "in a list"])
def test_a_type_with_code_of_its_own_is_asked_before_it_is_stored(kind, where):
    made = dataclasses.make_dataclass("Made", [("parts", list[kind], field(default_factory=list))])
    part = kind()
    vars(part)["_items" if kind is ByDescriptor else "items"] = 4  # as a handler's `items += 1` may, without a check
    session, path = (part, "session") if where == "itself" else (made([part]), "session.parts[0]")

    with pytest.raises(NotEncodableError, match="no more than 3 items") as caught:
        SessionShape(type(session)).encode(session, 10_000)

    assert caught.value.path == path
    assert type(caught.value.__cause__) is LookupError


def test_a_type_without_code_of_its_own_is_not_asked():
    @dataclass(frozen=True, slots=True)
    class Plain:
        items: int = 0

    for kind in (Plain, Profile, Node):
        assert not SessionShape(kind)._loader.has_own_code
    for kind in OWN:
        assert SessionShape(kind)._loader.has_own_code
