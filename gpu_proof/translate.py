"""Turns the PTX that nvcc makes of the kernels (NVIDIA's PTX ISA reference) into C++ for the simulated device.

So tests execute what nvcc made of a kernel: its load widths, its barriers. Each instruction becomes a statement; one
that is not known stops the translation with its text. gpu_proof/sim/ptx.h has what the C++ calls.
"""

import re
import subprocess
from collections.abc import Callable, Iterable


class PtxError(ValueError):
    """Something in the PTX that is not known; the message has its text and the kernel's name."""


CPP = {
    **{"u8": "uint8_t", "s8": "int8_t", "b8": "uint8_t", "u16": "uint16_t", "s16": "int16_t", "b16": "uint16_t"},
    **{"f16": "uint16_t", "bf16": "uint16_t", "u32": "uint32_t", "s32": "int32_t", "b32": "uint32_t"},
    **{"f32": "float", "u64": "uint64_t", "s64": "int64_t", "b64": "uint64_t", "f64": "double", "pred": "bool"},
}
HALVES = {"f16", "bf16"}
INTEGERS = {kind for kind in CPP if kind[0] in "usb" and kind not in HALVES}
# C++ of what is computed of operands a, b, c and d: by the instruction without its type and without "rn", "approx" and
# "ftz". Operands are read as the instruction's type, except those that KINDS names.
FORMS = {
    **{"add": "{a} + {b}", "sub": "{a} - {b}", "neg": "-{a}", "min": "::min({a}, {b})", "max": "::max({a}, {b})"},
    **{"mul": "{a} * {b}", "mul.lo": "{a} * {b}", "mad.lo": "{a} * {b} + {c}", "rem": "remainder({a}, {b})"},
    **{"and": "{a} & {b}", "or": "{a} | {b}", "xor": "{a} ^ {b}", "not": "~{a}", "not.pred": "!{a}"},
    **{"shl": "shift_left({a}, {b})", "shr": "shift_right({a}, {b})", "bfi": "bits_inserted({a}, {b}, {c}, {d})"},
    **{"popc": "__builtin_popcountll({a})", "clz": "leading_zeros({a})", "brev": "reversed({a})"},
    **{"bfind.shiftamt": "shift_to_top({a})", "dp4a.s32": "__dp4a({a}, {b}, {c})", "selp": "{c} ? {a} : {b}"},
    **{"abs.f32": "std::fabs({a})", "fma": "std::fma({a}, {b}, {c})", "fma.rm.f32": "fma_down({a}, {b}, {c})"},
    **{"div": "divide({a}, {b})", "rcp": "1 / {a}", "sqrt": "std::sqrt({a})", "ex2.f32": "exp2f({a})", "mov": "{a}"},
    "cvta.to.global": "{a}",
}
KINDS = {"shl": {"b": "u32"}, "shr": {"b": "u32"}, "bfi": {"c": "u32", "d": "u32"}, "selp": {"c": "pred"}}
WRAPS = {"add", "sub", "neg", "mul", "mul.lo", "mad.lo"}  # computed without the sign: C++ does not define the overflow
COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
NOT = {"ltu": ">=", "leu": ">", "gtu": "<=", "geu": "<", "neu": "=="}  # true of NaN: where the opposite is not true
COORDINATES = {"%tid": "threadIdx", "%ntid": "blockDim", "%ctaid": "blockIdx", "%nctaid": "gridDim"}
SHARED_GAP = 64  # kSharedGap of gpu_proof/sim/device.h

_ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*\(([^)]*)\)[^{]*\{(.*?)\n\}", re.DOTALL)
_SHARED = re.compile(r"\.shared\s+\.align\s+(\d+)\s+\.(\w+)\s+([\w$]+)(?:\[(\d+)\])?;")
_STATEMENT = re.compile(r"\s*(?:(\.loc\s[^\n]*)|([{}])|([\w$]+):(?!:)|([^;]+);)")


def plain_names(mangled: Iterable[str]) -> list[str]:
    """Kernels' names as the simulated device gives them: without namespaces, return type and parameters."""
    done = subprocess.run(["c++filt"], input="\n".join(mangled), capture_output=True, text=True, check=True)
    short = (re.sub(r"\(anonymous namespace\)::|\w+::", "", name) for name in done.stdout.splitlines())
    return [re.sub(r"^void |\(.*", "", name) for name in short]


def size_of(kind: str) -> int:
    """Bytes of a type, as "u32"."""
    return int(re.sub(r"\D", "", kind)) // 8


def _identifier(name: str) -> str:
    return re.sub(r"\W", "_", name.lstrip("%"))


def _split(text: str) -> list[str]:
    """Operands: at commas outside braces and parentheses."""
    return [part.strip() for part in re.findall(r"(?:\{[^}]*\}|\([^)]*\)|[^,{(])+", text)]


def _unsigned(kind: str) -> str:
    return "u" + kind[1:] if kind in INTEGERS else kind


class _Kernel:
    """One kernel while it is translated."""

    def __init__(self, parameters: str, body: str, files: dict[str, str]) -> None:
        names = [re.sub(r"\[\d+\]$", "", p.split()[-1]) for p in parameters.split(",") if p.strip()]
        self.parameters = {name: i for i, name in enumerate(names)}
        self.body, self.files = body, files
        self.types: dict[str, str] = {}  # of registers, in C++
        self.shared: dict[str, tuple[int, int]] = {}  # arrays' offsets and bytes
        end = 0
        for align, kind, name, count in _SHARED.findall(body):
            step, size = max(int(align), 16), size_of(kind) * int(count or 1)
            offset = (end + step - 1) // step * step
            self.shared[name] = offset, size
            end = (offset + size + 2 * SHARED_GAP - 1) // SHARED_GAP * SHARED_GAP

    # ------------------------------------------------------------ operands
    def value(self, text: str, kind: str) -> str:
        """C++ of an operand read as `kind`."""
        cpp = CPP.get(kind)
        if cpp is None:
            raise PtxError(f"type .{kind}")
        if text.startswith(("!", "-%")):
            return f"({text[0]}{self.value(text[1:], kind)})"
        base, _, axis = text.partition(".")
        if base in COORDINATES:
            return f"(uint32_t){COORDINATES[base]}.{axis}"
        if (name := _identifier(text)) in self.types and text.startswith("%"):
            return name if self.types[name] == cpp else f"as<{cpp}>({name})"
        if match := re.fullmatch(r"0([fFdD])([0-9a-fA-F]+)", text):
            floating, ending = ("float", "u") if match[1] in "fF" else ("double", "ull")
            return f"bits_as<{floating}>(0x{match[2]}{ending})"
        if re.fullmatch(r"-?(0x[0-9a-fA-F]+|\d+)U?", text):
            return f"({text} != 0)" if kind == "pred" else f"({cpp}){text.rstrip('U')}{'u' * (size_of(kind) == 8)}ll"
        if text in self.shared:
            return f"({cpp}){self.shared[text][0]}u"
        if text in self.parameters:
            return f"({cpp})(uint64_t)arguments[{self.parameters[text]}]"
        raise PtxError(f"operand {text}")

    def address(self, text: str, space: str) -> str:
        """C++ of a `char*`."""
        match = re.fullmatch(r"\[\s*([%\w$]+)\s*(?:\+\s*(-?\w+))?\s*\]", text)
        if match is None:
            raise PtxError(f"address {text}")
        base, offset = match[1], match[2] or "0"
        if space == "shared":
            return f"(shared + (uint32_t)({self.value(base, 'u32')} + {offset}))"
        if base in self.parameters:
            return f"((char*)arguments[{self.parameters[base]}] + {offset})"
        if space == "param" and not base.startswith("%"):  # of a call
            return f"((char*)&{_identifier(base)} + {offset})"
        return f"((char*)({self.value(base, 'u64')} + ({offset})))"

    def put(self, register: str, expression: str, cpp: str) -> str:
        """Stores an expression of a C++ type in a register; the plain case plainly, which halves compilers' time."""
        name = _identifier(register)
        plain = self.types.get(name) == cpp
        return f"{name} = ({cpp})({expression});" if plain else f"put({name}, ({cpp})({expression}));"

    def puts(self, registers: str, expression: str, cpp: str) -> str:
        """Stores element after element of an array in "{%r1, %r2}", or in one register."""
        return " ".join(self.put(r, f"{expression}[{i}]", cpp) for i, r in enumerate(_split(registers.strip("{}"))))

    # ------------------------------------------------------------ instructions
    def instruction(self, text: str) -> str:
        """C++ of an instruction: a handler below knows it, or FORMS does."""
        match = re.match(r"([\w.:]+)\s*(.*)$", text, re.DOTALL)
        assert match is not None
        name, *rest = match[1].replace("::", ".").split(".")
        operands = _split(match[2])
        handler: Callable[[list[str], list[str]], str | None] | None = getattr(self, f"do_{name}", None)
        code = handler(rest, operands) if handler else None
        if code is None:
            code = self.computed([name, *rest], operands)
        if code is None:
            raise PtxError("instruction")
        return code

    def computed(self, parts: list[str], o: list[str]) -> str | None:
        """Stores what FORMS makes of the operands."""
        kind = parts[-1]
        stem = ".".join(part for part in parts[:-1] if part not in {"rn", "approx", "ftz"})
        form = FORMS.get(f"{stem}.{kind}", FORMS.get(stem))
        if form is None or kind in HALVES:
            return None
        kind = _unsigned(kind) if stem in WRAPS else kind
        kinds = KINDS.get(stem, {})
        values = {name: self.value(x, kinds.get(name, kind)) for name, x in zip("abcd", o[1:])}
        return self.put(o[0], form.format(**values), CPP[kind])

    def do_mul(self, p: list[str], o: list[str]) -> str | None:
        if p[0] != "wide":
            return None
        cpp = CPP[f"{p[-1][0]}{size_of(p[-1]) * 16}"]  # twice the operands' width
        a, b = (self.value(x, p[-1]) for x in o[1:3])
        return self.put(o[0], f"({cpp}){a} * ({cpp}){b}", cpp)

    def do_mov(self, p: list[str], o: list[str]) -> str | None:
        pieces = _split(max(o, key=lambda x: x.startswith("{")).strip("{}"))
        width = size_of(p[0]) * 8 // len(pieces) if len(pieces) > 1 else 0
        if o[0].startswith("{"):
            value = self.value(o[1], p[0])
            return " ".join(self.put(x, f"{value} >> {i * width}", f"uint{width}_t") for i, x in enumerate(pieces))
        if o[1].startswith("{"):
            values = (f"({CPP[p[0]]}){self.value(x, f'b{width}')} << {i * width}" for i, x in enumerate(pieces))
            return self.put(o[0], " | ".join(values), CPP[p[0]])
        return None

    def do_cvt(self, p: list[str], o: list[str]) -> str | None:
        *modes, to, source = p
        if set(modes) - {"rn", "rzi", "rni", "sat"} or ("sat" in modes and to[0] != "f"):
            return None
        value = self.value(o[1], source)
        if source in HALVES:
            value, source = f"{source}_to_float({value})", "f32"
        if to in HALVES:
            return self.put(o[0], f"convert_to_{to}((float){value})", CPP[to])
        if source[0] == "f" and {"rzi", "rni"} & set(modes):
            value = f"std::{'trunc' if 'rzi' in modes else 'nearbyint'}({value})"
        if source[0] == "f" and to[0] in "su":
            value = f"float_to_int<{CPP[to]}>({value})"
        return self.put(o[0], f"saturated({value})" if "sat" in modes else value, CPP[to])

    def do_setp(self, p: list[str], o: list[str]) -> str | None:
        if len(p) != 2 or p[1] in HALVES or (p[0] == "ne" and p[1][0] == "f"):
            return None
        a, b = (self.value(x, p[1]) for x in o[1:3])
        sign = COMPARISONS.get(p[0]) or NOT.get(p[0])
        return self.put(o[0], f"{'' if p[0] in COMPARISONS else '!'}({a} {sign} {b})", "bool") if sign else None

    def do_bra(self, p: list[str], o: list[str]) -> str:
        return f"goto {_identifier(o[0])};"

    def do_ret(self, p: list[str], o: list[str]) -> str:
        return "return;"

    # ------------------------------------------------------------ memory
    def place(self, p: list[str], address: str) -> tuple[str, str] | None:
        """The address of a load or store and the C++ type it has; no volatile or ordered one, no other cache."""
        known = re.fullmatch(r"(?:(global|shared|param)\.)?(?:v([24])\.)?(\w+)", ".".join(p))
        if known is None or known[3] not in CPP:
            return None
        cpp = CPP[known[3]]
        return self.address(address, known[1]), f"Vector<{cpp}, {known[2]}>" if known[2] else cpp

    def do_ld(self, p: list[str], o: list[str]) -> str | None:
        if (found := self.place(p, o[1])) is None:
            return None
        address, cpp = found
        if not cpp.startswith("Vector"):
            return self.put(o[0], f"load<{cpp}>({address})", cpp)
        puts = self.puts(o[0], "v_.values", CPP[p[-1]])
        return f"{{ const auto v_ = load_vector<{cpp}>(SIMT_SITE, {address}); {puts} }}"

    def do_st(self, p: list[str], o: list[str]) -> str | None:
        if (found := self.place(p, o[0])) is None:
            return None
        address, cpp = found
        values = ", ".join(self.value(x, p[-1]) for x in _split(o[1].strip("{}")))
        if not cpp.startswith("Vector"):
            return f"store<{cpp}>({address}, {values});"
        return f"store_vector<{cpp}>(SIMT_SITE, {address}, {{{{{values}}}}});"

    def do_atom(self, p: list[str], o: list[str]) -> str | None:
        if p[:-1] not in (["shared", "add"], ["global", "add"]):
            return None
        cpp = CPP[p[-1]]
        return self.put(o[0], f"atomicAdd(({cpp}*){self.address(o[1], p[0])}, {self.value(o[2], p[-1])})", cpp)

    # ------------------------------------------------------------ threads together
    def do_bar(self, p: list[str], o: list[str]) -> str | None:
        if p == ["sync"] and o == ["0"]:
            return "syncthreads(SIMT_SITE);"
        if p == ["warp", "sync"]:
            return f"warp_collective(SIMT_SITE, WarpOp::kSync, {self.value(o[0], 'u32')}, 0);"
        kind = {"popc": "kCount", "or": "kOr"}.get(p[1]) if p[0] == "red" and len(o) == 3 and o[1] == "0" else None
        call = f"syncthreads_reduce(SIMT_SITE, {self.value(o[-1], 'pred')}, Reduce::{kind})" if kind else ""
        return self.put(o[0], call, CPP[p[-1]]) if kind else None

    def do_shfl(self, p: list[str], o: list[str]) -> str | None:
        operation = {"bfly": "kXor", "idx": "kIndex", "up": "kUp"}.get(p[1])
        if operation is None:
            return None
        operands = ", ".join(self.value(x, "u32") for x in o[1:])
        to, _, inside = o[0].partition("|")
        code = f"const auto s_ = shuffle_bits(SIMT_SITE, WarpOp::{operation}, {operands});"
        code += self.put(to, "s_.value", "uint32_t")
        return f"{{ {code} {self.put(inside, 's_.inside', 'bool') if inside else ''} }}"

    def do_vote(self, p: list[str], o: list[str]) -> str | None:
        operation = {"ballot": "kBallot", "any": "kAny"}.get(p[1])
        call = f"warp_collective(SIMT_SITE, WarpOp::{operation}, "
        call += f"{self.value(o[2], 'u32')}, {self.value(o[1], 'pred')})"
        return self.put(o[0], call, CPP[p[-1]]) if operation else None

    def do_mma(self, p: list[str], o: list[str]) -> str | None:
        if p[2:] != ["m16n8k8", "row", "col", "f32", "f16", "f16", "f32"]:
            return None
        kinds = ("b32", "b32", "f32")
        a, b, d = (", ".join(self.value(x, kind) for x in _split(part[1:-1])) for part, kind in zip(o[1:], kinds))
        return (
            f"{{ const uint32_t a_[] = {{{a}}}, b_[] = {{{b}}}; float d_[] = {{{d}}}; "
            f"mma(SIMT_SITE, a_, b_, d_); {self.puts(o[0], 'd_', 'float')} }}"
        )

    def do_call(self, p: list[str], o: list[str]) -> str | None:
        if o[0] != "cudaGraphSetConditional":
            return None
        return f"cudaGraphSetConditional({', '.join(map(_identifier, _split(o[1].strip('()'))))});"

    # ------------------------------------------------------------ the kernel
    def line(self, text: str) -> str:
        """Where the code that follows comes from; of what was inlined from CUDA's headers, where it was inlined."""
        places = re.findall(r"(?:\.loc|inlined_at)\s+(\d+)\s+(\d+)", text)
        named = [(self.files[file], line) for file, line in places]
        file, line = next((p for p in named if not re.search(r"/include/(\w+/)?[\w.]+$", p[0])), named[0])
        return f'\n#line {line} "{file}"\n' if line != "0" else ""

    def statement(self, text: str) -> str:
        """C++ of a declaration or an instruction."""
        if match := re.match(r"\.reg\s+\.(\w+)\s+(.*)$", text):
            names: list[str] = []
            for name in _split(match[2]):
                many = re.fullmatch(r"(%?[\w$]+)<(\d+)>", name)
                names += [f"{many[1]}{i}" for i in range(int(many[2]))] if many else [name]
            self.types.update((_identifier(name), CPP[match[1]]) for name in names)
            return f"{CPP[match[1]]} {', '.join(map(_identifier, names))};"
        if match := re.match(r"\.param\s+\.(\w+)\s+([\w$]+)$", text):
            return f"{CPP[match[1]]} {_identifier(match[2])};"
        if text.startswith((".pragma", ".shared")):
            return ""
        if text.startswith("."):
            raise PtxError("declaration")
        if match := re.match(r"@(!?%[\w$]+)\s+(.*)$", text, re.DOTALL):
            return f"if ({self.value(match[1], 'pred')}) {{ {self.instruction(match[2])} }}"
        return self.instruction(text)

    def translate(self) -> str:
        code = []
        for location, brace, label, text in _STATEMENT.findall(self.body):
            if not text:
                code.append(self.line(location) if location else brace or f"{_identifier(label)}: ;")
                continue
            try:
                code.append(self.statement(text))
            except PtxError as error:
                raise PtxError(f'{error} in "{text}"') from None
        return " ".join(code)


def translate(text: str) -> str:
    """C++ source of the kernels in a PTX file.

    Raises:
        PtxError: an instruction, type or declaration that is not known; with its text and the kernel's name.
    """
    text = re.sub(r"//[^\n]*", "", text)
    files = dict(re.findall(r'\.file\s+(\d+)\s+"([^"]+)"', text))
    outside = re.sub(r"\.section.*", "", _ENTRY.sub("", text), flags=re.DOTALL)
    if found := re.search(r"\.(global|const|shared|local)\b[^;]*;|\.func\b[^;]*\{", outside):
        raise PtxError(f"not handled outside of kernels: {found.group()}")
    kernels = _ENTRY.findall(text)
    code = ['#include "ptx.h"', "using namespace simt;", "using namespace simt::ptx;", "namespace {"]
    for i, (mangled, name) in enumerate(zip((kernel[0] for kernel in kernels), plain_names(k[0] for k in kernels))):
        kernel = _Kernel(kernels[i][1], kernels[i][2], files)
        try:
            body = kernel.translate()
        except PtxError as error:
            raise PtxError(f"{mangled}: not handled: {error}") from None
        arrays = ", ".join(f"{{{offset}, {size}}}" for offset, size in kernel.shared.values())
        code.append(f"void kernel_{i}([[maybe_unused]] void** arguments) {{")
        code.append(f"[[maybe_unused]] char* const shared = shared_base(); {body}\n}}")
        code.append(f'const bool known_{i} = know("{name}", kernel_{i}, {{{arrays}}});')
    return "\n".join([*code, "}  // namespace", ""])
