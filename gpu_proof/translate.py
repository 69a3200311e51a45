"""Turns the PTX that nvcc makes of the kernels into C++ for the simulated device, one statement an instruction.

So tests execute what nvcc made of a kernel: its load widths, its loads through the read-only cache, its barriers. An
instruction that is not known stops the translation with its text. gpu_proof/sim/ptx.h has what the C++ calls.
"""

import re
from collections.abc import Callable

from gpu_proof.ptx import Kernel, Module, PtxError, Statement, parse, size_of

CPP = {
    **{"u8": "uint8_t", "s8": "int8_t", "b8": "uint8_t", "u16": "uint16_t", "s16": "int16_t", "b16": "uint16_t"},
    **{"f16": "uint16_t", "bf16": "uint16_t", "u32": "uint32_t", "s32": "int32_t", "b32": "uint32_t"},
    **{"f32": "float", "u64": "uint64_t", "s64": "int64_t", "b64": "uint64_t", "f64": "double", "pred": "bool"},
}
COORDINATES = {"%tid": "threadIdx", "%ntid": "blockDim", "%ctaid": "blockIdx", "%nctaid": "gridDim"}
SPACES = ("global", "shared", "param", "local", "const")
HALVES = ("f16", "bf16")
# What an instruction computes of operands that it reads as its own type.
PLAIN = {
    **{"add": "{a} + {b}", "sub": "{a} - {b}", "neg": "-{a}", "abs": "absolute({a})"},
    **{"min": "minimum({a}, {b})", "max": "maximum({a}, {b})", "rem": "remainder({a}, {b})"},
    **{"and": "{a} & {b}", "or": "{a} | {b}", "xor": "{a} ^ {b}"},
    **{"popc": "__builtin_popcountll({a})", "clz": "leading_zeros({a})", "brev": "reversed({a})"},
    **{"rcp": "1 / {a}", "sqrt": "std::sqrt({a})", "rsqrt": "1 / std::sqrt({a})"},
    **{"ex2": "exp2f({a})", "lg2": "log2f({a})", "sin": "sinf({a})", "cos": "cosf({a})", "tanh": "tanhf({a})"},
}
WRAPS = {"add", "sub", "neg"}  # integers are computed without their sign: C++ does not define the overflow
MODIFIERS = {"rn", "approx", "ftz"}  # of those above
ACCESSES = {"global", "shared", "param", "local", "const", "nc", "v2", "v4", *CPP}  # of ld and st
SHARED_GAP = 64  # kSharedGap of gpu_proof/sim/device.h


def _identifier(name: str) -> str:
    return re.sub(r"\W", "_", name.lstrip("%"))


def _split(text: str) -> list[str]:
    """Operands: at commas outside brackets."""
    parts, depth, part = [], 0, ""
    for char in text:
        depth += (char in "{[(") - (char in "}])")
        if char == "," and depth == 0:
            parts.append(part.strip())
            part = ""
        else:
            part += char
    return [*parts, part.strip()] if part.strip() else parts


def _unsigned(kind: str) -> str:
    return kind if kind[0] == "f" else "u" + kind[1:]


def _unknown(parts: list[str]) -> PtxError:
    return PtxError(f"instruction {'.'.join(parts)}")


class _Translator:
    """One kernel's state while it is translated."""

    def __init__(self, module: Module, kernel: Kernel) -> None:
        self.module, self.kernel = module, kernel
        self.constants = {constant.name for constant in module.constants}
        self.parameters = {name: i for i, name in enumerate(kernel.parameters)}
        self.locals: set[str] = set()
        self.types: dict[str, str] = {}  # of registers, in C++
        self.offsets: dict[str, int] = {}
        self.static = 0
        for array in kernel.shared:
            align = max(array.align, 16)
            self.offsets[array.name] = self.static = (self.static + align - 1) // align * align
            self.static = (self.static + array.bytes + 2 * SHARED_GAP - 1) // SHARED_GAP * SHARED_GAP

    # ------------------------------------------------------------ operands
    def value(self, text: str, kind: str) -> str:
        """C++ of an operand read as `kind`."""
        text = text.strip()
        if text.startswith("!"):
            return f"(!{self.value(text[1:], kind)})"
        if text.startswith("-%"):
            return f"(-{self.value(text[1:], kind)})"
        cpp = CPP.get(kind)
        if cpp is None:
            raise PtxError(f"type .{kind}")
        if text.startswith("%"):
            base, _, axis = text.partition(".")
            if base in COORDINATES:
                return f"(uint32_t){COORDINATES[base]}.{axis}"
            if text == "%laneid":
                return "simt::lane()"
            if text in {"%clock", "%clock64", "%globaltimer"}:
                raise PtxError(f"{text}: the simulated device has no clock")
            name = _identifier(text)
            return name if self.types.get(name) == cpp else f"as<{cpp}>({name})"
        if re.fullmatch(r"0[fF][0-9a-fA-F]{8}", text):
            return f"f32_bits(0x{text[2:]}u)"
        if re.fullmatch(r"0[dD][0-9a-fA-F]{16}", text):
            return f"f64_bits(0x{text[2:]}ull)"
        if re.fullmatch(r"-?(0x[0-9a-fA-F]+|\d+)U?", text):
            if kind == "pred":
                return f"({text} != 0)"
            return f"({cpp})({text.rstrip('U')}{'ull' if size_of(kind) == 8 else 'll'})"
        if text in self.offsets:
            return f"({cpp}){self.offsets[text]}u"
        if text in self.module.dynamic_shared:
            return f"({cpp}){self.static}u"
        if text in self.locals:
            return f"as<{cpp}>({_identifier(text)})"
        if text in self.constants:
            return f"({cpp})(uint64_t)&{_identifier(text)}[0]"
        if text in self.parameters:
            return f"({cpp})(uint64_t)arguments[{self.parameters[text]}]"
        raise PtxError(f"operand {text}")

    def address(self, text: str, space: str) -> str:
        match = re.fullmatch(r"\[\s*([%\w$]+)\s*(?:\+\s*(-?\w+))?\s*\]", text.strip())
        if match is None:
            raise PtxError(f"address {text}")
        base, offset = match[1], match[2] or "0"
        if space == "param":
            if base in self.parameters:
                return f"((char*)arguments[{self.parameters[base]}] + {offset})"
            if base.startswith("%"):  # a register with a parameter's address
                return f"((char*)({self.value(base, 'u64')} + ({offset})))"
            return f"((char*)&{_identifier(base)} + {offset})"
        if space == "shared":
            return f"(shared + (uint32_t)({self.value(base, 'u32')} + {offset}))"
        return f"((char*)({self.value(base, 'u64')} + ({offset})))"

    def put(self, register: str, expression: str) -> str:
        """Stores an expression's bits in a register; "_" throws them away."""
        if register.strip() == "_":
            return f"(void)({expression});"
        name = _identifier(register.strip())
        known = re.match(r"\((\w+)\)\(|load<(\w+)>\(|(fmaf)\(|(\w+)$", expression)
        if known:  # the plain case is written plainly: compilers need half the time for it
            kind = known[1] or known[2] or ("float" if known[3] else self.types.get(known[4]))
            if kind == self.types.get(name):
                return f"{name} = {expression};"
        return f"put({name}, {expression});"

    # ------------------------------------------------------------ instructions
    def instruction(self, text: str) -> str:
        match = re.match(r"([\w.:]+)\s*(.*)$", text)
        assert match is not None
        parts, operands = match[1].replace("::", ".").split("."), _split(match[2])
        name, kind = parts[0], parts[-1]
        if name in PLAIN and kind not in HALVES and not set(parts[1:-1]) - MODIFIERS:
            return self.computed(operands, PLAIN[name], _unsigned(kind) if name in WRAPS else kind)
        handler: Callable[[list[str], list[str]], str] | None = getattr(self, f"do_{name}", None)
        if handler is None:
            raise _unknown(parts)
        return handler(parts, operands)

    def computed(self, o: list[str], form: str, kind: str) -> str:
        """Stores what `form` makes of the operands."""
        if kind not in CPP:
            raise PtxError(f"type .{kind}")
        values = dict(zip("abc", (self.value(x, kind) for x in o[1:])))
        return self.put(o[0], f"({CPP[kind]})({form.format(**values)})")

    def do_mul(self, p: list[str], o: list[str]) -> str:
        if "wide" in p:  # of twice the operands' width
            cpp = CPP[f"{p[-1][0]}{size_of(p[-1]) * 16}"]
            a, b = (self.value(x, p[-1]) for x in o[1:3])
            return self.put(o[0], f"(({cpp}){a} * ({cpp}){b})")
        if "hi" in p or p[-1] in HALVES:
            raise _unknown(p)
        return self.computed(o, "{a} * {b}", _unsigned(p[-1]))

    def do_mad(self, p: list[str], o: list[str]) -> str:
        if "lo" not in p or "cc" in p:
            raise _unknown(p)
        return self.computed(o, "{a} * {b} + {c}", _unsigned(p[-1]))

    def do_fma(self, p: list[str], o: list[str]) -> str:
        if p[-1] in HALVES:
            raise _unknown(p)
        values = ", ".join(self.value(x, p[-1]) for x in o[1:4])
        return self.put(o[0], f"{'fmaf' if p[-1] == 'f32' else 'fma'}({values})")

    def do_div(self, p: list[str], o: list[str]) -> str:
        return self.computed(o, "{a} / {b}" if p[-1] in {"f32", "f64"} else "divide({a}, {b})", p[-1])

    def do_not(self, p: list[str], o: list[str]) -> str:
        return self.computed(o, "!{a}" if p[-1] == "pred" else "~{a}", p[-1])

    def do_shl(self, p: list[str], o: list[str]) -> str:
        return self.put(o[0], f"shift_left({self.value(o[1], p[-1])}, {self.value(o[2], 'u32')})")

    def do_shr(self, p: list[str], o: list[str]) -> str:
        return self.put(o[0], f"shift_right({self.value(o[1], p[-1])}, {self.value(o[2], 'u32')})")

    def do_bfind(self, p: list[str], o: list[str]) -> str:
        return self.computed(o, f"highest_bit({{a}}, {'true' if 'shiftamt' in p else 'false'})", p[-1])

    def do_bfi(self, p: list[str], o: list[str]) -> str:
        a, b = (self.value(x, p[-1]) for x in o[1:3])
        return self.put(o[0], f"bits_inserted({a}, {b}, {self.value(o[3], 'u32')}, {self.value(o[4], 'u32')})")

    def do_dp4a(self, p: list[str], o: list[str]) -> str:
        if p[1:] != ["s32", "s32"]:
            raise _unknown(p)
        return self.put(o[0], f"dot_bytes({', '.join(self.value(x, 'b32') for x in o[1:4])})")

    def do_mov(self, p: list[str], o: list[str]) -> str:
        kind = p[-1]
        if o[0].startswith("{"):
            registers = _split(o[0][1:-1])
            width = size_of(kind) * 8 // len(registers)
            value = self.value(o[1], kind)
            return " ".join(self.put(r, f"(uint{width}_t)({value} >> {i * width})") for i, r in enumerate(registers))
        if o[1].startswith("{"):
            pieces = _split(o[1][1:-1])
            width = size_of(kind) * 8 // len(pieces)
            values = [f"(({CPP[kind]}){self.value(x, f'b{width}')} << {i * width})" for i, x in enumerate(pieces)]
            return self.put(o[0], " | ".join(values))
        return self.put(o[0], self.value(o[1], kind))

    def do_cvta(self, p: list[str], o: list[str]) -> str:
        value = self.value(o[1], "u64")
        if "shared" in p:
            return self.put(
                o[0], f"(uint64_t)((char*){value} - shared)" if "to" in p else f"(uint64_t)(shared + {value})"
            )
        return self.put(o[0], value)

    def do_cvt(self, p: list[str], o: list[str]) -> str:
        to, source = p[-2], p[-1]
        rounding = next((x for x in p[1:-2] if x in {"rzi", "rni"}), "")
        if set(p[1:-2]) - {"rn", "rzi", "rni", "sat"} or ("sat" in p and to[0] != "f"):
            raise _unknown(p)
        value = self.value(o[1], source)
        if source in HALVES:
            value, source = f"{source}_to_float({value})", "f32"
        if to in HALVES:
            return self.put(o[0], f"convert_to_{to}((float){value})")
        if source[0] == "f" and to[0] in "su":
            return self.put(o[0], f"float_to_int<{CPP[to]}>(round_{rounding}({value}))")
        if source[0] == "f" and rounding:
            value = f"round_{rounding}({value})"
        return self.put(o[0], f"({CPP[to]}){f'saturated({value})' if 'sat' in p else value}")

    def do_setp(self, p: list[str], o: list[str]) -> str:
        kind = p[-1]
        sign = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}.get(p[1][:2])
        if sign is None or len(p) != 3 or kind in HALVES or "|" in o[0]:
            raise _unknown(p)
        a, b = (self.value(x, kind) for x in o[1:3])
        result = f"({a} {sign} {b})"
        if kind[0] == "f" and p[1] == "ne":  # ordered: false of NaN
            result = f"({a} < {b} || {a} > {b})"
        if p[1].endswith("u") and p[1] != "neu":  # unordered: true of NaN
            result = f"(std::isnan({a}) || std::isnan({b}) || {result})"
        return self.put(o[0], result)

    def do_selp(self, p: list[str], o: list[str]) -> str:
        a, b = (self.value(x, p[-1]) for x in o[1:3])
        return self.put(o[0], f"({self.value(o[3], 'pred')} ? {a} : {b})")

    def do_bra(self, p: list[str], o: list[str]) -> str:
        return f"goto {_identifier(o[0])};"

    def do_ret(self, p: list[str], o: list[str]) -> str:
        return "return;"

    do_exit = do_ret

    def do_trap(self, p: list[str], o: list[str]) -> str:
        return 'simt::trap(SIMT_SITE, "trap instruction");'

    # ------------------------------------------------------------ memory
    def do_ld(self, p: list[str], o: list[str]) -> str:
        if set(p[1:]) - ACCESSES:  # no volatile, relaxed or stronger one: nothing but atomics orders threads here
            raise _unknown(p)
        space = next((x for x in p if x in SPACES), "generic")
        address, kind = self.address(o[1], space), p[-1]
        registers = _split(o[0][1:-1]) if o[0].startswith("{") else [o[0]]
        before = f"simt::read_only_load({address}, {size_of(kind) * len(registers)}); " if "nc" in p else ""
        if len(registers) == 1:
            return before + self.put(o[0], f"load<{CPP[kind]}>({address})")
        puts = " ".join(self.put(r, f"v_.values[{i}]") for i, r in enumerate(registers))
        vector = f"Vector<{CPP[kind]}, {len(registers)}>"
        return f"{{ {before}const auto v_ = load_vector<{vector}>(SIMT_SITE, {address}); {puts} }}"

    def do_st(self, p: list[str], o: list[str]) -> str:
        if set(p[1:]) - ACCESSES:
            raise _unknown(p)
        space = next((x for x in p if x in SPACES), "generic")
        address, kind = self.address(o[0], space), p[-1]
        if not o[1].startswith("{"):
            return f"store<{CPP[kind]}>({address}, {self.value(o[1], kind)});"
        values = [self.value(x, kind) for x in _split(o[1][1:-1])]
        vector = f"Vector<{CPP[kind]}, {len(values)}>"
        return f"store_vector<{vector}>(SIMT_SITE, {address}, {{{{{', '.join(values)}}}}});"

    def do_atom(self, p: list[str], o: list[str]) -> str:
        name = {"add": "atomicAdd", "exch": "atomicExch", "max": "atomicMax", "min": "atomicMin"}.get(p[2])
        kind = _unsigned(p[-1]) if p[-1][0] == "b" else p[-1]
        if p[1] not in {"global", "shared"} or name is None or len(p) != 4 or kind not in CPP or kind in HALVES:
            raise _unknown(p)
        return self.put(o[0], f"{name}(({CPP[kind]}*){self.address(o[1], p[1])}, {self.value(o[2], kind)})")

    def do_red(self, p: list[str], o: list[str]) -> str:
        return self.do_atom(p, ["_", *o])

    def do_membar(self, p: list[str], o: list[str]) -> str:
        return "simt::fence();" if {"gl", "sys"} & set(p) else ";"

    # ------------------------------------------------------------ threads together
    def do_bar(self, p: list[str], o: list[str]) -> str:
        if "warp" in p:
            return f"(void)simt::warp_collective(SIMT_SITE, simt::WarpOp::kSync, {self.value(o[0], 'u32')}, 0, 0, 32);"
        if "sync" in p and o == ["0"]:
            return "simt::syncthreads(SIMT_SITE);"
        if "red" in p and o[1] == "0" and len(o) == 3:
            kind = {"popc": "kCount", "or": "kOr"}[p[p.index("red") + 1]]
            return self.put(
                o[0], f"simt::syncthreads_reduce(SIMT_SITE, {self.value(o[2], 'pred')}, simt::Reduce::{kind})"
            )
        raise PtxError(f"instruction {'.'.join(p)} of {', '.join(o)}: part of a block or a numbered barrier")

    def do_shfl(self, p: list[str], o: list[str]) -> str:
        operation = {"bfly": "kXor", "idx": "kIndex", "up": "kUp", "down": "kDown"}[p[2]]
        to = o[0].split("|")
        value, argument, clamp, mask = (self.value(x, "u32") for x in o[1:5])
        call = f"shuffle_bits(SIMT_SITE, simt::WarpOp::{operation}, {mask}, {value}, {argument}, {clamp})"
        if len(to) == 1:
            return self.put(to[0], f"{call}.value")
        return f"{{ const auto s_ = {call}; {self.put(to[0], 's_.value')} {self.put(to[1], 's_.inside')} }}"

    def do_vote(self, p: list[str], o: list[str]) -> str:
        operation = {"ballot": "kBallot", "any": "kAny", "all": "kAll"}.get(p[2])
        if operation is None:
            raise _unknown(p)
        mask, value = self.value(o[2], "u32"), self.value(o[1], "pred")
        call = f"simt::warp_collective(SIMT_SITE, simt::WarpOp::{operation}, {mask}, {value}, 0, 32)"
        return self.put(o[0], f"({'uint32_t' if operation == 'kBallot' else 'bool'}){call}")

    def do_mma(self, p: list[str], o: list[str]) -> str:
        if p[3:] != ["m16n8k8", "row", "col", "f32", "f16", "f16", "f32"]:
            raise _unknown(p)
        d, a, b, c = (_split(x[1:-1]) for x in o)
        values = [", ".join(self.value(x, kind) for x in part) for part, kind in ((a, "b32"), (b, "b32"), (c, "f32"))]
        puts = " ".join(self.put(x, f"d_[{i}]") for i, x in enumerate(d))
        return (
            f"{{ const uint32_t a_[] = {{{values[0]}}}, b_[] = {{{values[1]}}}; float d_[] = {{{values[2]}}}; "
            f"simt::mma(SIMT_SITE, a_, b_, d_); {puts} }}"
        )

    def do_nanosleep(self, p: list[str], o: list[str]) -> str:
        return "simt::yield();"

    def do_call(self, p: list[str], o: list[str]) -> str:
        if "cudaGraphSetConditional" not in o:
            raise PtxError(f"call of {', '.join(o)}")
        handle, value = _split(o[o.index("cudaGraphSetConditional") + 1].strip("()"))
        return f"cudaGraphSetConditional({_identifier(handle)}, {_identifier(value)});"

    # ------------------------------------------------------------ the kernel
    def statement(self, s: Statement) -> str:
        if s.what == "instruction":
            code = self.instruction(s.text)
            return f"if ({self.value(s.guard, 'pred')}) {{ {code} }}" if s.guard else code
        if s.what == "line":
            return f'\n#line {s.line} "{s.file}"\n' if s.line else ""
        if s.what == "label":
            return f"{_identifier(s.text)}: ;"
        if s.what in {"{", "}"}:
            return s.what
        if s.what == "register":
            self.locals.update(name for name in s.names if not name.startswith("%"))
            self.types.update((_identifier(name), CPP[s.text]) for name in s.names)
            return f"{CPP[s.text]} {', '.join(_identifier(name) for name in s.names)};"
        if s.what == "local":
            assert s.array is not None
            self.locals.add(s.text)
            name = _identifier(s.text)
            memory = f"alignas({s.array.align}) char {name}_memory[{s.array.bytes}];"
            return f"{memory} uint64_t {name}; {name} = (uint64_t){name}_memory;"
        if s.what == "param":
            assert s.array is not None
            count = f"[{s.array.count}]" if s.array.count > 1 else ""
            return f"{CPP[s.array.kind]} {_identifier(s.text)}{count};"
        return ""

    def translate(self) -> str:
        lines = []
        for statement in self.kernel.body:
            try:
                lines.append(self.statement(statement))
            except PtxError as error:
                raise PtxError(f'{self.kernel.name}: not handled: {error} in "{statement.text}"') from None
        return " ".join(lines)


def translate(text: str) -> str:
    """C++ source of the kernels in a PTX file.

    Raises:
        PtxError: an instruction, type or declaration that is not known; with its text and the kernel's name.
    """
    module = parse(text)
    out = [f"// Made by gpu_proof/translate.py of PTX {module.version} for {module.target}."]
    out += ['#include "ptx.h"', "using namespace simt::ptx;", "namespace {"]
    for constant in module.constants:
        values = constant.values or ""
        if values:
            values = " = " + (values if values[0] == "{" else f"{{{values}}}")
        out.append(f"alignas(16) {CPP[constant.kind]} {_identifier(constant.name)}[{constant.count}]{values};")
    registrations = []
    for i, kernel in enumerate(module.kernels):
        translator = _Translator(module, kernel)
        out.append(
            f"void kernel_{i}(void** arguments) {{ char* const shared = (char*)simt::shared_base(); (void)shared;"
        )
        out.append(f"(void)arguments; {translator.translate()}\n}}")
        arrays = ", ".join(f'{{"{a.name}", {translator.offsets[a.name]}, {a.bytes}}}' for a in kernel.shared)
        registrations.append(
            f'simt::RegisterTranslated register_{i}("{kernel.name}", kernel_{i}, {translator.static}, {{{arrays}}});'
        )
    return "\n".join([*out, *registrations, "}  // namespace", ""])
