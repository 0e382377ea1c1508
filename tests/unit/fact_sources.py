"""Small repositories in several languages, and what is true of them, written by hand."""

from __future__ import annotations

PYTHON = {
    "shop/errors.py": '''\
"""The errors of the shop."""


class ShopError(Exception):
    """Anything that goes wrong in the shop."""

    CODE = 7
    RETRIES: int = 3

    def explain(self, verbose: bool = False) -> str:
        """Say what went wrong in one line."""
        return self.text if verbose else self.short


class CartFull(ShopError):
    """No more room in a cart."""

    def explain(self, verbose: bool = False) -> str:
        """Say how full the cart is."""
        return super().explain(verbose)
''',
    "shop/prices.py": '''\
"""Prices of everything that is sold. More is said below."""

import re
from shop.errors import CartFull, ShopError
from . import tables

CURRENCY = "EUR"
RATES = {"EUR": 1.0}
TWICE = 1
TWICE = 2


def parse_price(text: str, /, currency: str = "EUR", *rest: int, strict=None, **more) -> float:
    """Read a price, e.g. 12.50 EUR, from a text. It may be empty."""
    if not text:
        raise ValueError("empty price")
    if currency not in RATES:
        known = ", ".join(RATES)
        raise CartFull(known)
    if text == "free":
        return 0.0
    for part in rest:
        if part < 0: return -1.0
    return round(float(text), 2)


def reraised(text):
    """What is caught here is passed on, what is raised in a try is not certain."""
    try:
        parse_price(text)
    except ShopError as error:
        raise error
    try:
        raise KeyError(text)
    except KeyError:
        return None


def passed_on(text):
    """What is caught here is passed on and nothing else."""
    try:
        return parse_price(text)
    except ShopError as error:
        raise error


def variable_raise(error):
    """Raises what it was given."""
    raise error


def chained(rows):
    """Calls what a call has given."""
    return rows.sort().reverse(rows)


def nested(rows):
    """Holds a function of its own."""
    def inner():
        raise RuntimeError("inner")

    return inner


def generate(rows):
    """Gives one row after the other."""
    if rows is None:
        return 1
    yield rows


def elses(value, other):
    """Only one branch can be asked about."""
    if value:
        if other:
            raise LookupError("nested")
    elif other:
        raise TypeError("elif")
    else:
        return 3
    return tables.fill(value, other)


@cached(maxsize=10)
def total(prices):
    """Add all prices up."""
    return sum(parse_price(price, "EUR") for price in prices)


def only_caller(prices):
    """The one who asks for the total."""
    return total(prices)
''',
    "shop/cart.py": '''\
from shop.prices import total


class Cart:
    """A cart that holds items until they are paid."""

    LIMIT = 20
    KINDS = (
        "a",
    )

    def __init__(self, owner, limit: int = LIMIT):
        """Open the cart of an owner."""
        self.owner = owner

    @staticmethod
    def empty(size):
        """How an empty cart of a size is written."""
        return size * "-"

    @property
    def sum(self) -> float:
        """What all of it costs together."""
        return total(self.items)

    def add(self, item, count=1):
        """Put an item into the cart and say how many there are."""
        self.check_room(count)
        self.items.append(item)
        return len(self.items)

    def check_room(self, count):
        """Refuse more items than there is room for."""
        while count:
            if count > self.limit:
                raise OverflowError(count)
''',
    "tests/test_prices.py": """\
from shop.prices import parse_price, total


def test_parse_price():
    assert parse_price("1.50") == 1.5


def test_something_else_of_it():
    prices = ["1", "2"]
    assert parse_price("1") and prices and len(prices) == 2


def helper():
    return total([])


class Table:
    PRICE = total([1])
""",
}

JAVASCRIPT = {
    "lib/view.js": """\
'use strict';

var path = require('node:path');
var fs = require('fs');

const LIMIT = 10, NAME = 'view';

/**
 * Render a view with its options. Then call back.
 */
function render(name, options = {}, ...rest) {
  if (!name) {
    throw new TypeError('name is required');
  }
  if (options.raw) return name;
  for (const one of rest) {
    if (one === null) { return null; }
  }
  return path.join(LIMIT, lookup(name, 'x'));
}

function lookup(name, kind) {
  try {
    return fs.statSync(name);
  } catch (err) {
    throw err;
  }
}

const shout = (text) => text.toUpperCase();
const single = text => { return text; };

function* counter(limit) {
  if (limit) return limit;
  yield 1;
}

function odd(callback) {
  try {
    throw new RangeError('caught');
  } catch (err) {
    callback(err)(name);
  }
  if (a) { if (b) { throw new SyntaxError('nested'); } } else { throw new URIError('else'); }
  return function inner() { return /[/"]/.test(callback); };
}

class Base {
  #hidden = 1;
  open(mode = 'r') { return this.check(mode); }
  check(mode) {
    if (mode !== 'r') throw new Error(mode);
    return `mode ${mode}`;
  }
  later = async () => { await this.open('w'); };
}

class Derived extends Base {
  constructor(mode) {
    super(mode);
    this.mode = mode;
  }
  open(mode) { return super.open(mode); }
}

Base.prototype.close = function close(force) { shout(force); throw force; };
""",
}

TYPESCRIPT = {
    "src/geo.ts": """\
import {readFile} from 'fs';
import type {Point} from './point';
import data from './data.json' with {type: 'json'};
export * from './other';

export const PRECISION = 6;
const HIDDEN: string = 'x';

export interface Shape extends Solid<number>, Thing {
  area(): number;
  name: string;
}

/** The sides of a shape, e.g. Four of a square. */
export type Side = 'left' | 'right';

export abstract class Figure<T> implements Shape, Solid<T> {
  /** Measure the figure in some unit. */
  abstract measure(unit: string): number;

  protected scale(by: number = 2, offset?: Point, ...more: number[]): Figure<T> {
    if (by === 0) {
      const message = 'no scale';
      throw new RangeError(message);
    }
    return this.with(by, offset);
  }

  with(this: Figure<T>, by: number, offset?: Point): Figure<T> { return this; }
}

@Component({tag: 'x-circle'})
export class Circle extends Figure<number> {
  @Input('r') radius = 1;

  @Memo(10)
  override scale(by: number): Circle {
    return new Circle(by * this.radius);
  }

  measure(unit: string): number {
    return area<number>(this.radius, unit);
  }
}

export function area<T>(radius: number, unit: string): number {
  return radius * PRECISION;
}

export async function load(path: string): Promise<string> {
  const text = await readFile(path, 'utf8');
  return text as unknown as string;
}
""",
    "src/view.tsx": """\
export function View(props: {name: string}): JSX.Element {
  return <p>{props.name}</p>;
}
""",
}

GO = {
    "pkg/server.go": """\
// Package server answers requests. It is small.
package server

import (
\t"errors"
\tweb "net/http"
)

const Limit = 10
const (
\tFirst = iota
\tSecond
)

// ErrClosed is returned when the server is closed.
var ErrClosed = errors.New("closed")

// Server holds the state of one server. It is not safe.
type Server struct {
\tweb.Handler
\tname string
}

// Handler is what the server needs.
type Runner interface {
\tRun(name string) error
\tStop()
}

// Start begins to listen on a port.
func (s *Server) Start(port int, hosts ...string) (int, error) {
\tif port == 0 {
\t\treturn 0, ErrClosed
\t}
\tif err := s.check(port); err != nil {
\t\treturn 0, nil
\t}
\tfor _, host := range hosts {
\t\tif host == "" {
\t\t\treturn 1, nil
\t\t}
\t}
\treturn port, nil
}

func (s *Server) check(port int) error {
\treturn newError(port, "bad")
}

func newError(port int, text string) error {
\tif port < 0 {
\t\tpanic(text)
\t}
\treturn errors.New(string(text))
}

func closing(port int) (err error) {
\tdefer func() { err = ErrClosed }()
\treturn
}

var hook = func(name string) string { return name }
""",
    "pkg/server_test.go": """\
package server

import "testing"

func TestNewError(t *testing.T) {
\tif newError(1, "x") == nil {
\t\tt.Fatal("no error")
\t}
}
""",
}

JAVA = {
    "src/main/java/shop/Cart.java": """\
package shop;

import java.util.List;
import static java.util.Objects.requireNonNull;
import java.io.*;

/**
 * A cart that holds items. It is not thread-safe.
 */
public class Cart extends Basket<Item> implements Closeable, Iterable<Item> {
    private static final int LIMIT = 20;
    public static final String NAME = "cart", OTHER = "x";
    int open;

    /** Opens the cart of an owner. */
    public Cart(String owner) {
        super(owner);
        this.open = 1;
    }

    /**
     * Puts an item into the cart and counts.
     *
     * @param item what is put in
     */
    @Override
    @Deprecated(since = "2")
    public int add(final Item item, int... counts) throws CartFull {
        if (item == null) {
            throw new NullPointerException("item");
        }
        if (open > LIMIT) return LIMIT;
        try {
            count(item);
        } catch (IllegalStateException e) {
            throw e;
        }
        return Integer.valueOf(open);
    }

    private static void count(Item item) {
        Runnable later = new Runnable() {
            @Override
            public void run() { throw new IllegalArgumentException("later"); }
        };
        later.run();
    }

    void close() { outer.new Inner(open); }

    int lengths(String text) { return text.trim().length(); }

    <T> T pick(List<T> all) { return all.get(0); }
}

class Basket<T> {
    public int add(final T item, int... counts) { return item.size() + 1; }
}

class Small extends Basket<Item> {
    @Override
    public int add(final Item item, int... counts) { return super.add(item) + 1; }
}

enum Level {
    LOW, HIGH { int weight() { return 2; } };

    static final int TOP = 9;

    int weight() { return 1; }
}
""",
    "src/test/java/shop/CartTest.java": """\
package shop;

class CartTest {
    @Test
    void counts() {
        Cart.count(new Item("x"));
    }
}
""",
}

OTHERS = {
    "lib/cart.rb": """\
# A cart that holds items.
class Cart
  # Put an item into the cart. It may be refused.
  def add(item, count = 1)
    refuse item
    @items << item
  end
end
""",
    "src/cart.rs": """\
/// Puts an item into a cart.
#[inline]
pub fn add(cart: &mut Cart, name: &'static str) -> usize {
    check(name);
    cart.len()
}

/// Checks a name for its length.
pub fn check(name: &str) -> bool { name.len() > 1 }
""",
    "src/cart.c": """\
/* Counts the items of a cart. */
static int count(const struct cart *cart, int limit)
{
    if (limit < 0)
        return check(cart, "none");
    return size(cart) + (int)(limit);
}
""",
    "src/cart.cc": """\
// Opens a cart with some room.
Cart::Cart(int room, std::string owner) : room_(room), owner_(owner) {
  Reset(room);
}
""",
    "src/Cart.cs": """\
class Cart {
    /// <summary>Adds an item to <see cref="Cart"/> at once.</summary>
    [Pure]
    public int Add(string item, int count = 1) {
        Check(item);
        if (count < 0) throw new ArgumentException("count");
        return this.Items.Add(item);
    }
}
""",
    "src/cart.php": """\
<?php
class Cart {
    /**
     * Adds an item to the cart.
     */
    public function add(string $item, int $count = 1): int
    {
        $this->check($item);
        return count($this->items);
    }
}
""",
    "src/Cart.kt": """\
/** Adds an item to a cart. */
fun add(item: String, count: Int = 1): Int = items.add(item)
""",
    "bin/cart.sh": """\
# Adds an item to the cart.
add_item() {
    echo "$1" >> cart
}
""",
}

# What is easily read wrongly.
EDGES = {
    "again/pool.py": '''\
"""Exceptions that are raised again once they were caught."""


def handle(request, pool):
    """Returns what the request gives. It may fail."""
    if not request:
        raise RuntimeError("nothing is asked")
    try:
        return pool.send(request)
    except BaseException as exc:
        pool.failed = True
        raise exc


def silent(request, pool):
    """Passes on what it catches without a name."""
    if not request:
        raise RuntimeError("nothing is asked")
    try:
        return pool.send(request)
    except OSError:
        raise
    finally:
        pool.close()


def given(request, failure):
    """Raises what a caller gives."""
    if failure:
        raise failure
    raise RuntimeError(request)


def assigned(request, pool):
    """Raises what stands in a variable."""
    Kind = pool.kinds[request]
    if request:
        raise Kind
    raise RuntimeError(request)


def capital(request, pool):
    """Raises what was caught under a name in capitals."""
    try:
        pool.send(request)
    except OSError as Caught:
        raise Caught
    raise RuntimeError(request)


def kept(request, pool):
    """Raises what an attribute holds."""
    if pool.failure:
        raise pool.failure
    raise RuntimeError(request)


def wrapped(request, pool):
    """Raises its own exceptions for what it catches."""
    try:
        return pool.send(request)
    except ValueError as exc:
        raise RuntimeError(request) from exc
    except KeyError:
        raise OSError from None


def caught(request, pool):
    """Catches what it raises."""
    try:
        raise KeyError(request)
    except KeyError:
        return pool.send(request)


def sections(url):
    """Parameters:
        url (str): where it is asked.
    """
    return url.strip()


def underlined(url):
    """
    Parameters
    ----------
    url : str
        Where it is asked.
    """
    return url.lower()
''',
    "again/pool.ts": """\
/**
 * Returns: what the request gives.
 */
export function handle(url: string, pool: Pool) {
  if (!url) {
    throw new RangeError('nothing is asked');
  }
  try {
    return pool.send(url);
  } catch (err) {
    pool.close();
    throw err;
  }
}

export function given(url: string, failure: Error) {
  if (failure) throw failure;
  throw new RangeError(url);
}

export function capital(url: string, pool: Pool) {
  const Kind = pool.kinds[url];
  if (pool.closed) throw new Kind(url);
  throw new RangeError(url);
}

export function texts(url: string, pool: Pool) {
  if (pool.closed) throw 'closed';
  throw new RangeError(url);
}

export function wrapped(url: string, pool: Pool) {
  try {
    return pool.send(url);
  } catch (err) {
    if (url) throw TypeError(url);
    throw new RangeError(err);
  }
}
""",
    "again/Pool.java": """\
class Pool {
    int handle(String url) {
        if (url == null) {
            throw new IllegalStateException("nothing is asked");
        }
        try {
            return send(url);
        } catch (RuntimeException | Error e) {
            close();
            throw e;
        }
    }

    int given(String url, RuntimeException failure) {
        if (failure != null) throw failure;
        throw new IllegalStateException(url);
    }

    int wrapped(String url) {
        try {
            return send(url);
        } catch (RuntimeException e) {
            throw new IllegalStateException(url, e);
        }
    }
}
""",
    "edges/calls.py": '''\
"""Calls and raises in unusual places."""

import socket

if socket:
    import extra


def default_calls(when=socket.gethostname()):
    """Something is called when it is defined."""
    return when.lower(1)


def dotted_error(name):
    """Raises an old exception in lower case."""
    if not name:
        raise socket.error(name)
    if name == 1:
        print(name)
        raise LookupError(name)
    if name == 2:
        if name:
            print(name)
        raise OSError
    raise self.Special.kind(name)


def again(name):
    """Calls things twice, over lines, without a name, and itself."""
    again(name)
    first(1, 2)
    first(3, 4)
    second(
        name,
    )
    third()
    print(lambda: name(1))
    raise name(4)


def many(a):
    """Calls more than are asked about."""
    one(a, 1), two(a, 2), three(a, 3), four(a, 4), five(a, 5)


def twice(text):
    """Raises the same on two ways."""
    if text:
        raise ValueError
    if not text:
        raise ValueError
    if text:
        return 1
    return 2


def bare():
    """Raises again what it is told, and returns nothing."""
    with lock:
        if lock: return
    raise


class Holder:
    """Holds methods in unusual places."""

    if extra:
        def one(self): return first(self.two(1), 2)
    else:
        def other(self): return 2
    try:
        def two(self, value): return value + value
    except ImportError:
        def three(self): return 3
    with lock:
        COUNT = 1

    def shadowed(self, first): return first(1, 2)

    def static(self): return Holder.two(self, 7)

    def module(self): return socket.gethostname(self.two)


class Wide(Holder, socket.Other):
    """Derives from two."""

    def two(self, value): return super().two(value * 2)


class Alone(Unknown):
    """Derives from a class that is not there."""

    def two(self, value): return super().two(value * 2)


class Deep(Holder):
    """Has nothing of its own."""


class Deeper(Deep):
    """Overrides what its base's base has."""

    def two(self, value): return super().two(value * 3)

    def absent(self): return super().absent(1)


class Ring(Ring):
    """Derives from itself."""

    def two(self, value): return super().two(value * 4)


def expression(name):
    """Raises what an expression gives."""
    if name:
        raise (name or ValueError)


def recursive(value):
    """Calls itself, and is called by nobody else."""
    return recursive(value - 1)


def outer(value):
    """Holds one that calls its neighbour."""
    def helper(value): return value + 1

    def user(value): return helper(value) * 2

    return user


def same(value): return value * 3


def same(value): return value * 4


def uses_same(value): return same(value) + 1


@same
def decorated(value): return value * 5


def long_named_function_with_many_words_in_its_name_one(value): return shared_callee(value, 1)


def long_named_function_with_many_words_in_its_name_two(value): return shared_callee(value, 2)


def shared_callee(value, other): return value + other


def handed_on(value): return shared_callee


def both(value): return Only().only_method(value)


def for_classes(value): return value + 11


class UsesForClasses:
    """Calls a function in its body."""

    VALUE = for_classes(3)


def plain_decorator(function): return function.wrapped(1)


@plain_decorator
def plainly_decorated(value): return value * 6


def twice_held(value): return value + 12


def holds_twice(value):
    """Calls it, as one within does."""
    def inner(value): return twice_held(value) * 3

    return twice_held(value)


def in_two_ways(holder):
    """Calls two of a name."""
    return recursive_method(holder) + holder[0].recursive_method(1)


def recursive_method(value): return value + 13


def qualified(value): return (value or first).only_method(value)


class Only:
    """Has the only method of its name."""

    def only_method(self, value): return value + 7

    def user(self): return self.only_method(1)
''',
    "edges/calls.js": """\
const one = require('one').two, two = require('two');
let changing = 3;

/* no JSDoc */
function patterns({a, b}, [c], ...rest /* all */) {
  const f = new Date;
  return {
    a
  };
}

function templates(a) {
  tag`x`;
  a?.b(1);
  (a || one)(2);
  (() => 1)();
  (function () { return 2; })();
  import('x');
}

function thrower(a) {
  if (a) throw makeError(a);
  if (!a) { const b = 1; return b; }
  if (a === 1) return;
  throw a.b;
}

function empty(a) {
  if (a) { }
  if (!a) { if (a) return; throw new Error(a); }
}

function* generator(a) { return helper(a, 1); }

const held = {
  helper(a, b) { return a + b; },
  user: function (a) { return this.helper(a, 3); },
};

function locals(a) {
  var helper = (x) => x(a), [q] = a;
  for (const thing of a) helper(thing, 1);
  function inner(z) { return z; }
  return helper(a, 2);
}

function finder(a) { return held.helper(a, 5); }

function raised(a) {
  try { a(1); } finally { if (a) throw new Error('x'); }
  throw new (pick(a))('y');
}

class Odd extends mixin(Object) {
  wrapped = (function () { return 1; });
  plain = 7;
  [Symbol.iterator]() { return 3; }
}
""",
    "edges/types.ts": """\
import fs = require('fs');
declare function declared(a: number): string;
export enum Level { Low = 1, High }
export namespace inner { export function deep(a: number): number { return a + a; } }
export class Box {
  #secret = 1;
  static readonly SIZE = 4;
  constructor(private readonly side: number, @Inject() public other?: string) { }
  get area() { return this.side * this.side; }
  callback = ((a: number) => a + 1) as unknown;
  overloaded(a: string): string;
  overloaded(a: any) { return a.b(1); }
}
export interface Caller { (a: number): string; new (b: string): Box; }
""",
    "edges/calls.go": """\
package edges

import "io"

type Reader interface {
\tio.Reader
\tClose() error
}

type Pair[T any] struct{ *Base; first T }

func unnamed(int, string) int { return 1 }

func reading(r io.Reader, err error) (n int, failed error) {
\tif n == 1 {
\t\tn = 2
\t\treturn n, io.EOF
\t}
\tfor n < 3 {
\t\tif err != nil { return 0, err }
\t}
\tswitch n {
\tcase 1:
\t\tif n > 2 { return 5, nil }
\t}
\treturn
}

func values() ([]int, error) { return []int{1, 2}, nil }

func sentinel(n int) error {
\tif n > 1 { return ErrLarge }
\treturn pkg.ErrSmall
}

func local(n int) int {
\tvalues := func(a int) int { return a }
\tconst k = 3
\tvar m = 4
\treturn values(n + k + m)
}

func package_call(n int) int { return pkg.Deep(n) + Deep(n, 1) }

var (
\tone = func(a int) int { return a + 1 }
\ttwo = func(a int) int { return a + 2 }
)

type (
\tA struct{ B }
\tB int
)

func (A) Nameless(n int) int { return n * n }
""",
    "edges/Calls.java": """\
package edges;

public class Calls<T extends @A Object> extends Base<T> {
    static final int X = Math.max(1, 2);
    static int Y = 3;
    final int z = 4;
    interface In { int one(int a); }
    @interface Mark { int value() default 3; }
    record Point(int x) { Point { if (x < 0) throw new IllegalStateException(); } }

    /* not documented */
    public <E> E types(@Final Calls<T> this, final List<? extends E> all, int count[]) {
        synchronized (this) { if (all == null) return null; }
        for (E e : all) { if (e != null) { return e; } }
        Runnable r = () -> { throw new IllegalArgumentException("x"); };
        do { if (count == null) { int a = 1; throw new Error("y"); } } while (r == null);
        throw (RuntimeException) make(all);
    }

    int classes(Class<?> c) {
        if (Calls.class.isInstance(c)) return 1;
        try (Reader in = open(c)) { throw new IOException("z"); }
        catch (IOException e) { in.log(e); }
        return new int[] {1}.length + this.<String>generic(2) + outer().inner(3);
    }

    @Override public int hash(int a) { return super.hash(a) + new Deep<T>(a) { int x; }.x; }
    int plain(int a) { return new Plain(a) { int y; }.y + Plain.<T>of(a, 3); }
    static class Nested {
        static final int INNER = 1;
        int held(int a) { return outer.new In(a).b; }
    }

    Calls(int a) { this(a, 1); }
}
""",
    "edges/text.c": """\
#define TWICE(x) twice((x), (x))
int (*pick(int a))(int) { return table[a](a); }
int spread(int a, ...) { return a + 1; }
int nothing(void) { return 1 + 2; }
int pointer(int (*callback)(int), int count) { return callback(count); }
""",
    "edges/text.rs": """\
fn generic<T: Into<String>>(&self, value: T, pair: (usize, usize)) -> usize where T: Clone, {
    let size = vec![1]; size.len().max(value) }
fn semicolon(a: u8);
""",
    "edges/text.rb": """\
class Text
  def ==(other)
    @a == other.a
  end

  def keyed(name:, size: 3, **more)
    name
  end

  def no_parentheses
    3 + 4
  end

  def value=(a)
    @a = a
  end
end
""",
    "edges/text.php": """\
<?php
/** Adds what is given. Twice. */
function adder(int $a): int { $f = new Foo; return run($a)->go($a); }
# Hash comments do not document.
function hashed(int $a): int { throw new \\LogicException("x"); }
""",
    "edges/Text.cs": """\
class Text {
    /** <summary>Blocks may be <b>bold</b>, too.</summary> */
    [Pure(Because("x"), 2)] [Other]
    public static Text operator ==(Text a, Text b) { return a; }
    public int this[int index] { get { return Get(index); } }
}
""",
    "edges/text.kt": """\
@JvmStatic @Suppress("x")
fun annotated(a: Int = call(1)) = a + 1
val property: String get() = "x"
""",
}
