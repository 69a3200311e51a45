"""Reads PTX (NVIDIA's PTX ISA reference) as nvcc writes it: modules, kernels, statements."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field


class PtxError(ValueError):
    """Something in the PTX that the translator does not know; the message has its text."""


def size_of(kind: str) -> int:
    """Bytes of a type, as "u32"."""
    match = re.fullmatch(r"[a-z]+(8|16|32|64)", kind)
    if match is None:
        raise PtxError(f"type .{kind}")
    return int(match[1]) // 8


@dataclass
class Array:
    """A variable in shared, local, constant or global memory."""

    name: str
    kind: str
    count: int
    align: int
    values: str | None = None

    @property
    def bytes(self) -> int:
        return self.count * size_of(self.kind)


@dataclass
class Statement:
    """One thing in a kernel's body.

    Attributes:
        what: "instruction", "label", "line", "{", "}", "register", "local" or "param".
        text: the instruction, the label's name, the declared type, or the variable's name.
        guard: of an instruction: the predicate that permits it, with "!" where it forbids; or "".
        names: of "register": the registers.
        file, line: of "line".
        array: of "local".
    """

    what: str
    text: str = ""
    guard: str = ""
    names: list[str] = field(default_factory=list)
    file: str = ""
    line: int = 0
    array: Array | None = None


@dataclass
class Kernel:
    """An entry function: its mangled name, parameters in order, shared arrays and body."""

    name: str
    parameters: list[str]
    shared: list[Array]
    body: list[Statement]


@dataclass
class Module:
    """What one PTX file holds.

    Attributes:
        version, target: as "9.0" and "sm_75".
        dynamic_shared: names of the arrays whose size the launch gives.
        constants: variables outside kernels.
    """

    version: str
    target: str
    dynamic_shared: set[str]
    constants: list[Array]
    kernels: list[Kernel]


_VARIABLE = re.compile(
    r"\.align\s+(?P<align>\d+)\s+\.(?P<kind>\w+)\s+(?P<name>[\w$]+)(?:\[(?P<count>\d*)\])?(?:\s*=\s*(?P<values>\{[^}]*\}|[^;{]+))?"
)


def _array(text: str) -> Array:
    match = _VARIABLE.search(text)
    if match is None:
        raise PtxError(f"declaration {text}")
    return Array(match["name"], match["kind"], int(match["count"] or 1), int(match["align"]), match["values"])


def _closing(text: str, start: int) -> int:
    """The index of the brace that closes the one at `start`."""
    depth = 0
    for i in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return i
    raise PtxError("a brace is not closed")


def parse(text: str) -> Module:
    """Reads a PTX file.

    Raises:
        PtxError: something that is not known.
    """
    text = re.sub(r"//[^\n]*", "", text)
    files = dict(re.findall(r'\.file\s+(\d+)\s+"([^"]+)"', text))
    head = re.search(r"\.version\s+(\S+).*?\.target\s+(\w+)", text, re.DOTALL)
    if head is None:
        raise PtxError("no .version and .target")
    outside, kernels, position = [], [], 0
    for match in re.finditer(r"(?:\.visible\s+|\.weak\s+)?\.entry\s+([\w$]+)\s*\(([^)]*)\)([^{]*)\{", text):
        end = _closing(text, match.end() - 1)
        outside.append(text[position : match.start()])
        position = end + 1
        names = [re.sub(r"\[\d+\]$", "", p.split()[-1]) for p in match[2].split(",") if p.strip()]
        body = text[match.end() : end]
        shared = [_array(m) for m in re.findall(r"\.shared\s+(\.align[^;]+);", body)]
        kernels.append(Kernel(match[1], names, shared, list(_statements(body, files))))
    outside.append(text[position:])
    rest = re.sub(r"\.section.*", "", "".join(outside), flags=re.DOTALL)
    if found := re.search(r"\.func\b(?!.*cudaGraphSetConditional)[^;{]*\{", rest, re.DOTALL):
        raise PtxError(f"a function that was not inlined: {found.group()}")
    dynamic = set(re.findall(r"\.extern\s+\.shared\s+\.align\s+\d+\s+\.\w+\s+([\w$]+)\[\]", rest))
    constants = [_array(m) for m in re.findall(r"\.(?:const|global)\s+(\.align[^;{]+(?:\{[^}]*\})?)\s*;", rest)]
    shared = [_array(m) for m in re.findall(r"(?<!\.extern )\.shared\s+(\.align[^;]+);", rest)]
    if dynamic.intersection(a.name for a in shared):
        shared = [a for a in shared if a.name not in dynamic]
    for kernel in kernels:
        kernel.shared += shared
    return Module(head[1], head[2], dynamic, constants, kernels)


_NOT_A_STATEMENT = re.compile(r"\s+|\.loc\s+(\d+)([^\n]*)|([{}])|([\w$]+):(?!:)")


def _line(text: str, files: dict[str, str]) -> Statement:
    """Where the code that follows comes from; of what was inlined from CUDA's headers, where it was inlined."""
    places = re.findall(r"(?:\.loc|inlined_at)\s+(\d+)\s+(\d+)", text)
    named = [Statement("line", file=files.get(file, "?"), line=int(line)) for file, line in places]
    ours = (place for place in named if not re.search(r"/include/(\w+/)?[\w.]+$", place.file))
    return next(ours, named[0])


def _statements(body: str, files: dict[str, str]) -> Iterator[Statement]:
    position = 0
    while position < len(body):
        rest = body[position:]
        if match := _NOT_A_STATEMENT.match(rest):
            position += match.end()
            if match[1]:
                yield _line(match[0], files)
            elif match[3]:
                yield Statement(match[3])
            elif match[4]:
                yield Statement("label", match[4])
            continue
        end = body.find(";", position)
        if end < 0:
            raise PtxError(f"statement {rest[:80]!r}")
        text = " ".join(body[position:end].split())
        position = end + 1
        if text:
            yield _statement(text)


def _statement(text: str) -> Statement:
    if match := re.match(r"\.reg\s+\.(\w+)\s+(.*)$", text):
        names: list[str] = []
        for name in match[2].split(","):
            if many := re.match(r"\s*(%?[\w$]+)<(\d+)>\s*$", name):
                names += [f"{many[1]}{i}" for i in range(int(many[2]))]
            else:
                names.append(name.strip())
        return Statement("register", match[1], names=names)
    if text.startswith(".shared"):
        return Statement("shared")  # read before, with the kernel
    if text.startswith(".local"):
        array = _array(text)
        return Statement("local", array.name, array=array)
    if match := re.match(r"\.param\s+(?:\.align\s+\d+\s+)?\.(\w+)\s+([\w$]+)(?:\[(\d+)\])?$", text):
        return Statement("param", match[2], array=Array(match[2], match[1], int(match[3] or 1), 8))
    if text.startswith((".pragma", ".maxn", ".reqn", ".minnc")):
        return Statement("pragma")
    if text.startswith("."):
        raise PtxError(f"declaration {text}")
    guard = ""
    if match := re.match(r"@(!?%?[\w$]+)\s+(.*)$", text):
        guard, text = match[1], match[2]
    return Statement("instruction", text, guard)
