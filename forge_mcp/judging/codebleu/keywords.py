"""The words of each language that weigh five times as much as others in the weighted n-gram match.

They are the lists of the `codebleu` package 0.7.0, oddities included, since the numbers depend on
them: JavaScript's has 'True' for 'true', C++'s some names of the standard library, Go's no 'nil'.
TypeScript's, which the package does not have, are JavaScript's and the words that TypeScript adds.
"""

from __future__ import annotations


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_C = _words(
    """
    _Packed auto break case char const continue default do double else enum extern float for
    goto if int long register return short signed sizeof static struct switch typedef union
    unsigned void volatile while
    """
)
_CPP = (_C - {"_Packed"}) | _words(
    """
    and and_eq asm bitand bitor bool catch class compl const_cast delete dynamic_cast explicit
    false friend inline mutable namespace new not not_eq operator or or_eq private protected
    public reinterpret_cast static_cast template this throw true try typeid typename using
    virtual wchar_t xor xor_eq
    INT_MAX INT_MIN MAX_RAND NULL cin cout endl include iomanip iostream main npos std string
    """
)
_GO = _words(
    """
    break case chan const continue default defer else fallthrough false for func go goto if
    import interface map package range return select struct switch true type var
    """
)
_JAVA = _words(
    """
    abstract assert boolean break byte case catch char class const continue default do double
    else enum extends final finally float for goto if implements import instanceof int interface
    long native new package private protected public return short static strictfp super switch
    synchronized this throw throws transient try void volatile while
    """
)
_JAVASCRIPT = _words(
    """
    True await break case catch class const continue debugger default delete do else enum export
    extends false finally for function if implements import in instanceof interface let new null
    package private protected public return static super switch this throw try typeof var void
    while with yield
    """
)
_PYTHON = _words(
    """
    False None True and as assert async await break case class continue def del elif else except
    finally for from global if import in is lambda match nonlocal not or pass raise return try
    type while with yield
    """
)
_RUST = _words(
    """
    as async await block bool break char const continue crate default dyn else enum expr extern
    f32 f64 false fn for i128 i16 i32 i64 i8 ident if impl in isize item let lifetime literal
    loop macro_rules! match meta mod move mut pat path pub ref return self static stmt str
    struct super trait true tt ty type u128 u16 u32 u64 u8 union unsafe use usize vis where
    while yield
    """
)
_TYPESCRIPT = _JAVASCRIPT | _words(
    """
    abstract any as asserts async boolean declare infer is keyof module namespace never number
    object override readonly require satisfies string symbol true type undefined unique unknown
    """
)

KEYWORDS: dict[str, frozenset[str]] = {
    "python": _PYTHON,
    "javascript": _JAVASCRIPT,
    "typescript": _TYPESCRIPT,
    "tsx": _TYPESCRIPT,
    "go": _GO,
    "java": _JAVA,
    "rust": _RUST,
    "c": _C,
    "cpp": _CPP,
}
