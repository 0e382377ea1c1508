"""Go and Java: an id where the language says so, the plain name everywhere else.

Every rule stands with a case in which it must not apply: a wrong edge becomes a wrong fact.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from dependency_cases import Case, check

# -- Go ----------------------------------------------------------------------------------------

MODULE = {"go.mod": "module example.com/mine\n\ngo 1.22\n"}
TEXT = "package text\n\nfunc Trim() {}\nfunc trim() {}\n"

GO: dict[str, Case] = {
    "own package": (
        {"p/a.go": "package p\nfunc F() { g(); h() }\n", "p/b.go": "package p\nfunc g() {}\n"},
        "p/a.go::F",
        ["p/b.go::g", "h"],
    ),
    "another folder": (
        {"p/a.go": "package p\nfunc F() { g() }\n", "q/b.go": "package p\nfunc g() {}\n"},
        "p/a.go::F",
        ["g"],
    ),
    "defined twice": (
        {"p/a.go": "package p\nfunc F() { g() }\n", "p/b.go": "package p\nfunc g() {}\n"}
        | {"p/c.go": "package p\nfunc g() {}\n"},
        "p/a.go::F",
        ["g"],
    ),
    "tests outside of the package": (
        {"p/a.go": "package p\nfunc F() { g() }\n", "p/a_test.go": "package p_test\nfunc g() {}\n"},
        "p/a.go::F",
        ["g"],
    ),
    "tests of the package": (
        {"p/a.go": "package p\nfunc g() {}\n", "p/a_test.go": "package p\nfunc F() { g() }\n"},
        "p/a_test.go::F",
        ["p/a.go::g"],
    ),
    "import with the module's prefix": (
        MODULE
        | {"util/text/t.go": TEXT}
        | {
            "p/a.go": 'package p\nimport "example.com/mine/util/text"\nfunc F() { text.Trim(); text.No() }\n'
        },
        "p/a.go::F",
        ["util/text/t.go::Trim", "text.No"],
    ),
    "unexported": (
        MODULE
        | {"util/text/t.go": TEXT}
        | {"p/a.go": 'package p\nimport "example.com/mine/util/text"\nfunc F() { text.trim() }\n'},
        "p/a.go::F",
        ["text.trim"],
    ),
    "alias": (
        MODULE
        | {"util/text/t.go": TEXT}
        | {
            "p/a.go": 'package p\nimport t "example.com/mine/util/text"\nfunc F() { t.Trim(); text.Trim() }\n'
        },
        "p/a.go::F",
        ["util/text/t.go::Trim", "text.Trim"],
    ),
    "another module": (
        MODULE
        | {"util/text/t.go": TEXT}
        | {"p/a.go": 'package p\nimport "github.com/other/util/text"\nfunc F() { text.Trim() }\n'},
        "p/a.go::F",
        ["text.Trim"],
    ),
    "the standard library": (
        MODULE
        | {"text/t.go": TEXT}
        | {"p/a.go": 'package p\nimport "text"\nfunc F() { text.Trim() }\n'},
        "p/a.go::F",
        ["text.Trim"],
    ),
    "a module below": (
        {
            "sub/go.mod": "module example.com/sub\n",
            "sub/text/t.go": TEXT,
            "text/t.go": TEXT,
            "sub/p/a.go": 'package p\nimport "example.com/sub/text"\nfunc F() { text.Trim() }\n',
        },
        "sub/p/a.go::F",
        ["sub/text/t.go::Trim"],
    ),
    "receiver": (
        {
            "p/a.go": "package p\nfunc (t *T) F() { t.g(); t.h(); u.g(); g() }\n",
            "p/b.go": "package p\ntype T struct{}\nfunc (x T) g() {}\n",
        },
        "p/a.go::T.F",
        ["p/b.go::T.g", "t.h", "u.g", "g"],
    ),
    "a type in another file is no scope": (
        {
            "p/a.go": "package p\nfunc (c *C) close() {}\nfunc (c *C) F() { close(c.ch) }\n",
            "p/b.go": "package p\ntype C struct{ ch chan int }\n",
        },
        "p/a.go::C.F",
        ["close"],
    ),
    "a type in the same file is no scope": (
        {
            "p/a.go": "package p\ntype C struct{}\nfunc (c *C) close() {}\nfunc (c *C) F() { close(c.ch) }\n"
        },
        "p/a.go::C.F",
        ["close"],
    ),
    "embedded": (
        MODULE
        | {
            "p/a.go": 'package p\nimport "example.com/mine/q"\ntype T struct{ *q.B }\n'
            "func (t T) F() { t.G(); t.N() }\n",
            "q/b.go": "package q\ntype B struct{ C }\n",
            "q/c.go": "package q\ntype C struct{}\nfunc (c C) G() {}\n",
        },
        "p/a.go::T.F",
        ["q/c.go::C.G", "t.N"],
    ),
    "a field is not embedded": (
        {
            "p/a.go": "package p\ntype B struct{}\nfunc (b B) g() {}\ntype T struct{ b B }\nfunc (t T) F() { t.g() }\n"
        },
        "p/a.go::T.F",
        ["t.g"],
    ),
    "two embedded types": (
        {
            "p/a.go": "package p\ntype C struct{}\nfunc (c C) g() {}\ntype A struct{ C }\n"
            "type B struct{}\nfunc (b B) g() {}\ntype T struct{ A; B }\nfunc (t T) F() { t.g() }\n"
        },
        "p/a.go::T.F",
        ["t.g"],  # two embedded types have it; that B is the shallower one is not looked at
    ),
    "cyclic embedding ends": (
        {
            "p/a.go": "package p\ntype A struct{ *B }\ntype B struct{ *A }\nfunc (a A) F() { a.g() }\n"
        },
        "p/a.go::A.F",
        ["a.g"],
    ),
    "parameters": (
        {"p/a.go": "package p\nfunc g() {}\nfunc F(g, h func()) { g(); h() }\nfunc h() {}\n"},
        "p/a.go::F",
        ["g", "h"],
    ),
    "results": (
        {"p/a.go": "package p\nfunc g() {}\nfunc F() (g func()) { g(); return }\n"},
        "p/a.go::F",
        ["g"],
    ),
    "locals": (
        MODULE
        | {"node/n.go": "package node\nfunc New() int { return 1 }\nfunc Run() {}\n"}
        | {
            "p/a.go": 'package p\nimport "example.com/mine/node"\n'
            "func F() {\n\tnode := node.New()\n\tnode.Run()\n}\n"
        },
        "p/a.go::F",
        ["node.New", "node.Run"],  # which of the two is the package is not known
    ),
    "a closure's parameter": (
        {
            "p/a.go": "package p\nfunc g() {}\nfunc F(x func(func(func()))) { x(func(g func()) { g() }) }\n"
        },
        "p/a.go::F",
        ["x", "g"],
    ),
}


@pytest.mark.parametrize("case", GO.values(), ids=GO)
def test_go(tmp_path: Path, case: Case) -> None:
    check(tmp_path, case)


# -- Java --------------------------------------------------------------------------------------


def java(**files: str) -> dict[str, str]:
    """Files by their path with underscores for slashes; the package clause is put in front."""
    made = {}
    for name, source in files.items():
        folder, _, file = name.replace("_", "/").rpartition("/")
        made[f"{folder}/{file}.java"] = f"package {folder.replace('/', '.')};\n{source}\n"
    return made


B = "public class B { public static void g() {} public void m() {} }"

JAVA: dict[str, Case] = {
    "own class": (
        java(x_p_A="class A { void f() { g(); this.g(); h(); } void g() {} }"),
        "x/p/A.java::A.f",
        ["x/p/A.java::A.g", "h"],
    ),
    "overloaded": (
        java(x_p_A="class A { void f() { g(1); } void g() { x = 1; } void g(int y) {} }"),
        "x/p/A.java::A.f",
        ["g"],
    ),
    "overloaded without bodies": (
        java(
            x_p_A="abstract class A { abstract void g(); abstract void g(int y); void f() { g(1); } }"
        ),
        "x/p/A.java::A.f",
        ["g"],
    ),
    "overloaded, one without a body": (
        java(
            x_p_A="abstract class A { abstract void g(); void g(int y) { x = y; } void f() { g(); } }"
        ),
        "x/p/A.java::A.f",
        ["g"],
    ),
    "own package": (
        java(x_p_A="class A { void f() { B.g(); new B(); B.h(); } }", x_p_B=B),
        "x/p/A.java::A.f",
        ["x/p/B.java::B.g", "x/p/B.java::B", "B.h"],
    ),
    "another package": (
        java(x_p_A="class A { void f() { B.g(); } }", x_q_B=B),
        "x/p/A.java::A.f",
        ["B.g"],
    ),
    "import": (
        java(x_p_A="import x.q.B; class A { void f() { B.g(); B.h(); } }", x_q_B=B),
        "x/p/A.java::A.f",
        ["x/q/B.java::B.g", "B.h"],
    ),
    "import before the own package": (
        java(x_p_A="import x.q.B; class A { void f() { B.g(); } }", x_q_B=B, x_p_B=B),
        "x/p/A.java::A.f",
        ["x/q/B.java::B.g"],
    ),
    "import of another's class": (
        java(x_p_A="import q.B; class A { void f() { B.g(); } }", x_q_B=B),
        "x/p/A.java::A.f",
        ["B.g"],
    ),
    "source folders": (
        {f"src/main/java/{path}": text for path, text in java(x_q_B=B, x_p_A="class A {}").items()}
        | {
            f"src/test/java/{path}": text
            for path, text in java(x_q_T="import x.q.B; class T { void f() { B.g(); } }").items()
        },
        "src/test/java/x/q/T.java::T.f",
        ["src/main/java/x/q/B.java::B.g"],
    ),
    "star": (
        java(x_p_A="import x.q.*; class A { void f() { B.g(); C.g(); } }", x_q_B=B),
        "x/p/A.java::A.f",
        ["x/q/B.java::B.g", "C.g"],
    ),
    "the own package before a star": (
        java(x_p_A="import x.q.*; class A { void f() { B.g(); } }", x_q_B=B, x_p_B=B),
        "x/p/A.java::A.f",
        ["x/p/B.java::B.g"],
    ),
    "two stars": (
        java(x_p_A="import x.q.*; import x.r.*; class A { void f() { B.g(); } }", x_q_B=B, x_r_B=B),
        "x/p/A.java::A.f",
        ["B.g"],
    ),
    "packages of one word": (
        java(p_A="import q.*; class A { void f() { B.g(); } }", q_B=B),
        "p/A.java::A.f",
        ["q/B.java::B.g"],
    ),
    "static import": (
        java(x_p_A="import static x.q.B.g; class A { void f() { g(); m(); } }", x_q_B=B),
        "x/p/A.java::A.f",
        ["x/q/B.java::B.g", "m"],
    ),
    "static star": (
        java(x_p_A="import static x.q.B.*; class A { void f() { g(); h(); } }", x_q_B=B),
        "x/p/A.java::A.f",
        ["x/q/B.java::B.g", "h"],
    ),
    "own method before a static import": (
        java(x_p_A="import static x.q.B.g; class A { void f() { g(); } void g() {} }", x_q_B=B),
        "x/p/A.java::A.f",
        ["x/p/A.java::A.g"],
    ),
    "inner class": (
        java(
            x_p_A="class A { void f() { I.h(); new I(); J.h(); } static class I { static void h() {} } }"
        ),
        "x/p/A.java::A.f",
        ["x/p/A.java::A.I.h", "x/p/A.java::A.I", "J.h"],
    ),
    "inner class of another": (
        java(
            x_p_A="import x.q.B.I; import x.q.B; class A { void f() { I.h(); B.I.h(); I.k(); } }",
            x_q_B="public class B { public static class I { public static void h() {} } }",
        ),
        "x/p/A.java::A.f",
        ["x/q/B.java::B.I.h", "I.k"],
    ),
    "from an inner class out": (
        java(x_p_A="class A { void g() {} class I { void f() { g(); } } }"),
        "x/p/A.java::A.I.f",
        ["x/p/A.java::A.g"],
    ),
    "from an inner class that inherits": (
        java(x_p_A="class A { void g() {} class I extends Unknown { void f() { g(); } } }"),
        "x/p/A.java::A.I.f",
        ["g"],
    ),
    "inherited": (
        java(
            x_p_A="import x.q.B; class A extends B { void f() { this.m(); super.m(); m(); this.n(); } }",
            x_q_B="public class B extends C<String> {}",
            x_q_C="class C<T> { void m() {} }",
        ),
        "x/p/A.java::A.f",
        ["x/q/C.java::C.m", "this.n"],
    ),
    "inherited before an interface that is not known": (
        java(x_p_A="class A extends B implements U { void f() { this.m(); } }", x_p_B=B),
        "x/p/A.java::A.f",
        ["x/p/B.java::B.m"],
    ),
    "inherited from what is not known": (
        java(x_p_A="class A extends U implements B { void f() { this.m(); } }", x_p_B=B),
        "x/p/A.java::A.f",
        ["this.m"],
    ),
    "cyclic bases end": (
        java(
            x_p_A="class A extends B { void f() { this.z(); super.z(); } }",
            x_p_B="class B extends A {}",
        ),
        "x/p/A.java::A.f",
        ["this.z", "super.z"],
    ),
    "a variable's method": (
        java(x_p_A="class A { void g() {} void f(B b) { b.m(); b.g(); } }", x_p_B=B),
        "x/p/A.java::A.f",
        ["b.m", "b.g"],
    ),
}


@pytest.mark.parametrize("case", JAVA.values(), ids=JAVA)
def test_java(tmp_path: Path, case: Case) -> None:
    check(tmp_path, case)
