"""What a block uses: ids of blocks of the same repository where that is certain, else names.

A name is resolved as its language looks it up: own class behind self or this (and its bases),
enclosing scopes, imports (through re-exports), and the package in Go and Java. Where two
definitions answer, where a parameter or a variable hides the name, or where a base class is not
known that may define it too, the plain name stays: a wrong edge would become a wrong fact.

While it resolves a file, the resolver notes which other files and packages it has looked at, so
that a later run knows what to resolve anew when one of them has changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from forge_mcp.mining.blocks import Symbol, base_name
from forge_mcp.mining.languages.base import Import
from forge_mcp.mining.modules import PYTHON, Modules, package_of

MAX_HOPS = 5
STAR = "*"
PACKAGES = frozenset({"go", "java"})
# Bases that define no methods of a user's.
ROOTS = frozenset({"object", "ABC", "Generic", "Protocol", "NamedTuple", "TypedDict"})


@dataclass(frozen=True, slots=True)
class Target:
    """A definition that a name may mean."""

    id: str
    path: str
    kind: str
    qualified_name: str
    bases: list[str]
    lexical: bool
    scopes: list[str]


CLASSES = frozenset({"class", "type"})
WEAK = frozenset({"declaration", "type"})  # another definition of the name means more
MISSING = Target("", "", "", "", [], False, [])  # certainly not there; None: not known


@dataclass(slots=True)
class FileTable:
    """The names that a file defines, brings in by imports, and passes on (None: ambiguous)."""

    names: dict[str, Target | None] = field(default_factory=dict)
    imports: dict[str, Import | None] = field(default_factory=dict)
    exports: dict[str, Import] = field(default_factory=dict)
    stars: list[Import] = field(default_factory=list)
    stars_before: dict[str, int] = field(default_factory=dict)  # how many stand before an import
    exported_stars: list[Import] = field(default_factory=list)
    public: set[str] | None = None  # Python's __all__
    order: dict[str, int] = field(default_factory=dict)  # of blocks in the file, by id

    @classmethod
    def of(
        cls,
        path: str,
        symbols: Iterable[Symbol],
        imports: Iterable[Import],
        rebound: Iterable[str],
        public: Iterable[str] | None,
    ) -> FileTable:
        """The table of one file; `rebound` are names that its top level assigns."""
        table = cls(public=None if public is None else set(public))
        for place, symbol in enumerate(symbols):
            table.order[symbol.id] = place
            if symbol.kind != "module":
                name = symbol.qualified_name
                target = Target(
                    symbol.id,
                    path,
                    symbol.kind,
                    name,
                    symbol.bases,
                    symbol.lexical,
                    symbol.scopes,
                )
                add_name(table.names, name, target)
        for imported in imports:
            table.add_import(imported)
        for name in rebound:
            if name in table.names:
                table.names[name] = None
            if name in table.imports:
                table.imports[name] = None
        return table

    def add_import(self, imported: Import) -> None:
        """An import; two of one name, or one of a name that is defined here, mean neither."""
        local = imported.local
        if local == STAR:
            (self.exported_stars if imported.passed_on else self.stars).append(imported)
        elif imported.passed_on:
            self.exports[local] = imported
        elif local in self.names:
            self.names[local] = None
        else:
            known = self.imports.get(local, imported)
            self.imports[local] = imported if known == imported else None
            self.stars_before[local] = len(self.stars)


class Resolver:
    """All names of a repository."""

    def __init__(
        self,
        modules: Modules,
        load: Callable[[str], FileTable],
        first_tier: frozenset[str],
    ) -> None:
        """Nothing is loaded before it is asked for.

        Args:
            modules: where modules and packages stand.
            load: gives a file's table.
            first_tier: languages whose names are resolved across files.
        """
        self.modules = modules
        self.first_tier = first_tier
        self._load = load
        self._tables: dict[str, FileTable] = {}
        self._packages: dict[tuple[str, bool], dict[str, Target | None]] = {}
        self._files: dict[str, _File] = {}
        self.consulted: set[str] = set()

    def table(self, path: str) -> FileTable:
        """The table of a file; looking at it is noted."""
        self.consulted.add(path)
        if path not in self._tables:
            self._tables[path] = self._load(path)
        return self._tables[path]

    def package(self, name: str, tests: bool = False) -> dict[str, Target | None]:
        """The names that the files of a Go or Java package define together; what Go's tests
        define the others do not see.
        """
        self.consulted.add(f"{name}/")
        key = (name, tests)
        if key not in self._packages:
            names: dict[str, Target | None] = {}
            for path in self.modules.packages.get(name, ()):
                if tests or not path.endswith("_test.go"):
                    for name, target in self._quietly(path).names.items():
                        add_name(names, name, target)
            self._packages[key] = names
        return self._packages[key]

    def _quietly(self, path: str) -> FileTable:
        """A file of a package: the package was noted, which changes with its files."""
        noted = self.consulted
        self.consulted = set()
        table = self.table(path)
        self.consulted = noted
        return table

    def file(self, path: str) -> _File:
        """The names that are known in a file."""
        self.consulted.add(path)
        if path not in self._files:
            self._files[path] = _File(self, path, self.modules.languages[path])
        return self._files[path]

    def resolve_file(self, path: str, symbols: Sequence[Symbol]) -> list[list[str]]:
        """Ids or plain names of what each block of a file uses, in the order of the blocks.

        `consulted` then holds the files and packages (these end in '/') that were looked at,
        besides the file itself.
        """
        self.consulted = set()
        file = self.file(path)
        found = [file.dependencies(symbol) for symbol in symbols]
        self.consulted.discard(path)
        file.outer.clear()  # most of what a resolver would hold, and hardly asked for again
        return found


class _File:
    """The names that are known in one file."""

    def __init__(self, resolver: Resolver, path: str, language: str) -> None:
        self.resolver = resolver
        self.path = path
        self.language = language
        self.table = resolver.table(path)
        # What was looked up before, and at what the lookup looked.
        self.outer: dict[str, tuple[Target | None, frozenset[str]]] = {}
        self.heads = {name.rpartition(".")[2] for name in self.table.names}
        self.heads.update(local.partition(".")[0] for local in self.table.imports)

    def package(self) -> dict[str, Target | None]:
        """The names of the file's own package."""
        return self.resolver.package(package_of(self.path), self.path.endswith("_test.go"))

    def dependencies(self, symbol: Symbol) -> list[str]:
        """Ids or plain names of what a block calls, inherits from and is decorated by."""
        if self.language not in self.resolver.first_tier:
            return symbol.uses
        found: dict[str, None] = {}
        for name in symbol.uses:
            target = self.resolve(name, symbol)
            if target is None:
                found[name] = None
            elif target.id != symbol.id:
                found[target.id] = None
        return list(found)

    def resolve(self, name: str, symbol: Symbol) -> Target | None:
        """The block that a dotted name means inside a block, or None where that is not certain."""
        target = self.lookup(name, symbol)
        if target is None or self.language != "python" or symbol.kind != "class":
            return target
        order = self.table.order
        if target.path == self.path and order[target.id] > order[symbol.id]:
            return None  # a class looks its bases up as it is made: what follows is not there yet
        return target

    def lookup(self, name: str, symbol: Symbol) -> Target | None:
        """What a dotted name means by scopes and imports, wherever in its file it is bound."""
        if name in symbol.hidden:
            return None
        parts = (name.replace("?.", ".") if "?" in name else name).split(".")
        head = parts[0]
        if symbol.receiver and head in (symbol.receiver, "super()", "super"):
            return self.of_receiver(head, parts[1:], symbol)
        if head in ("self", "this", "super", "super()"):
            return None
        for scope in symbol.scopes:  # the innermost scope that knows the name decides
            if f"{scope}.{head}" in self.table.names:
                return self.table.names.get(f"{scope}.{'.'.join(parts)}")
            if self.language == "java" and len(parts) == 1:
                inherited = self.member_of_class(scope, head)
                if inherited is not MISSING:
                    return inherited
        if head in symbol.hidden:
            return None
        for imported in symbol.imports:  # within the function
            if imported.local == head:
                return certain(self.follow(self.path, imported, parts[1:], MAX_HOPS))
        if name not in self.outer:
            noted, self.resolver.consulted = self.resolver.consulted, set()
            target = self.outside(parts)
            self.outer[name] = target, frozenset(self.resolver.consulted)
            self.resolver.consulted = noted
        target, looked_at = self.outer[name]
        self.resolver.consulted |= looked_at
        return target

    def of_receiver(self, head: str, rest: list[str], symbol: Symbol) -> Target | None:
        """A method of the block's own object."""
        if len(rest) != 1:
            return None
        owner = self.class_named(symbol.owner)
        if owner is None:
            return None
        own = head == symbol.receiver
        return certain((self.member if own else self.inherited)(owner, rest[0], MAX_HOPS))

    def class_named(self, name: str) -> Target | None:
        """A class of the file, or of the package in Go."""
        names = self.package() if self.language == "go" else self.table.names
        found = names.get(name)
        return found if found is not None and found.kind in CLASSES else None

    def member_of_class(self, name: str, member: str) -> Target | None:
        """A method that a Java class defines or inherits."""
        owner = self.class_named(name)
        return self.member(owner, member, MAX_HOPS) if owner is not None else MISSING

    def outside(self, parts: list[str]) -> Target | None:
        """What a name means beyond the block: in the file, through imports, in the package."""
        head, names = parts[0], self.table.names
        if head in names:
            there = names[head]
            if there is None or not there.lexical:
                return None
            return names.get(".".join(parts))
        if len(parts) > 1 and ".".join(parts) in names:  # in a namespace or an object
            return names[".".join(parts)]
        if head in self.heads or self.language not in PACKAGES:
            found = certain(self.imported(self.path, parts, MAX_HOPS))
            if found is not None or self.is_imported(parts):
                return found
        if self.language in PACKAGES:
            package = self.package()
            if head in package:
                return package.get(".".join(parts))
        return certain(self.starred(self.path, self.table.stars, parts, MAX_HOPS))

    def is_imported(self, parts: list[str]) -> bool:
        """Whether an import of the file binds the name, whatever it means."""
        return any(".".join(parts[:n]) in self.table.imports for n in range(1, len(parts) + 1))

    # -- classes -------------------------------------------------------------------------------

    def member(self, owner: Target, name: str, hops: int) -> Target | None:
        """A method of a class or of its bases; None where that is not certain."""
        qualified = f"{owner.qualified_name}.{name}"
        if self.language == "go":
            scope = self.resolver.package(package_of(owner.path), owner.path.endswith("_test.go"))
        else:
            scope = self.resolver.table(owner.path).names
        if qualified in scope:
            return scope[qualified]
        return self.inherited(owner, name, hops)

    def inherited(self, owner: Target, name: str, hops: int) -> Target | None:
        """A method of the bases of a class.

        Bases are not put in the order of Python's MRO: where two of them give different methods,
        or one is not known, nothing is certain. In the other languages the first base that has
        the method wins over interfaces behind it that are not known.
        """
        if not hops:
            return None
        found = MISSING
        for text in owner.bases:
            base = base_name(text)
            if base.rpartition(".")[2] in ROOTS:
                continue
            home = self.resolver.file(owner.path)
            place = Symbol(
                owner.id, "class", owner.qualified_name, [], True, owner.scopes, [], "", "", [], []
            )
            parent = home.resolve(base, place)
            if parent is None or parent.kind not in CLASSES or parent.id == owner.id:
                if found is not MISSING and self.language not in ("python", "go"):
                    return found
                return None
            member = self.resolver.file(parent.path).member(parent, name, hops - 1)
            if member is None:
                return None
            if member is not MISSING:
                if found is not MISSING and member.id != found.id:
                    return None if self.language in ("python", "go") else found
                found = member
        return found

    # -- imports -------------------------------------------------------------------------------

    def imported(self, path: str, parts: list[str], hops: int) -> Target | None:
        """What a dotted name means through the imports of a file."""
        table = self.resolver.table(path)
        for length in range(len(parts), 0, -1):  # 'import a.b' makes 'a.b' the local name
            local = ".".join(parts[:length])
            if local in table.imports:
                imported = table.imports[local]
                if imported is None or not hops:
                    return None
                found = self.follow(path, imported, parts[length:], hops)
                # A star behind it binds the name anew, where its module has the name.
                behind = table.stars[table.stars_before[local] :]
                again = self.starred(path, behind, parts, hops) if behind else MISSING
                return found if again is MISSING or again == found else None
        return MISSING

    def starred(self, path: str, stars: list[Import], parts: list[str], hops: int) -> Target | None:
        """A name that `from x import *`, `export * from` or `import x.*` brings in."""
        found: Target | None = MISSING
        for star in stars if hops else ():
            target = self.of_star(path, star, parts, hops)
            if target is not MISSING:
                if found is not MISSING:
                    return None
                found = target
        return found

    def of_star(self, path: str, star: Import, parts: list[str], hops: int) -> Target | None:
        modules = self.resolver.modules
        if path.endswith(".java"):
            return self.in_java(star.module, parts)
        target = modules.find(path, star.module)
        if target is None:
            return MISSING if not star.module.startswith(".") else None
        public = self.resolver.table(target).public
        private = parts[0].startswith("_") if public is None else parts[0] not in public
        if (path.endswith(PYTHON) and private) or parts[0] == "default":
            return MISSING
        return self.exported(target, parts, hops - 1)

    def follow(self, path: str, imported: Import, rest: list[str], hops: int) -> Target | None:
        """What the rest of a dotted name means in what was imported."""
        resolver, modules = self.resolver, self.resolver.modules
        if path.endswith(".go"):
            folder = modules.go_package(imported.module)
            exported = len(rest) == 1 and rest[0][:1].isupper()
            return resolver.package(folder).get(rest[0]) if folder and exported else None
        if path.endswith(".java"):
            return self.in_java(imported.module, [imported.name or "", *rest])
        if imported.name is None:
            target = modules.find(path, imported.module)
            return self.exported(target, rest, hops - 1) if target and rest else None
        target = modules.find(path, imported.module)
        found: Target | None = MISSING
        if target is not None:
            found = self.exported(target, [imported.name, *rest], hops - 1)
        if found is MISSING and path.endswith(PYTHON):  # 'from package import module'
            module = imported.module
            joined = f"{module}{'' if module.endswith('.') else '.'}{imported.name}"
            inner = modules.find(path, joined)
            return self.exported(inner, rest, hops - 1) if inner is not None and rest else None
        return certain(found)

    def in_java(self, module: str, parts: list[str]) -> Target | None:
        """A type of a package, or a member of a type that the import names."""
        prefix: list[str] = []
        while module:
            folder = self.resolver.modules.java_package(module)
            if folder is not None:
                package = self.resolver.package(folder)
                return package.get(".".join([*prefix, *parts]), MISSING)
            module, _, last = module.rpartition(".")
            prefix.insert(0, last)
        return MISSING

    def exported(self, path: str, parts: list[str], hops: int) -> Target | None:
        """A name of another file: defined there, or imported there and passed on."""
        if hops < 0:
            return None
        table = self.resolver.table(path)
        dotted = ".".join(parts)
        if dotted in table.names:
            passed = table.exports.get(parts[0])
            if passed is None or passed.name == parts[0]:
                return table.names[dotted]
        if parts[0] in table.exports:
            passed = table.exports[parts[0]]
            if passed.module:
                return self.follow(path, passed, parts[1:], hops)
            own = [passed.name or "", *parts[1:]]
            return table.names.get(".".join(own)) or certain(self.imported(path, own, hops))
        if parts[0] in table.names:
            return None
        if path.endswith(PYTHON):
            found = self.imported(path, parts, hops)
            if found is not MISSING:
                return found
            return self.starred(path, table.stars, parts, hops)
        return self.starred(path, table.exported_stars, parts, hops)


def certain(target: Target | None) -> Target | None:
    """The target, or None where there is none."""
    return None if target is MISSING else target


def add_name(names: dict[str, Target | None], name: str, target: Target | None) -> None:
    """A name that two definitions have means neither; overloads mean what they declare."""
    if name not in names:
        names[name] = target
        return
    there = names[name]
    if there is not None and there.kind in WEAK:
        if target is None or target.kind not in WEAK:
            names[name] = target
    elif target is None or target.kind not in WEAK:
        names[name] = None
