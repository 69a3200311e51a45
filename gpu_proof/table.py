"""The kernels' C interface (csrc/backend/cuda/kernels.h) from Python: structs and the table of functions, by ctypes.

Both are read from the headers, so that they cannot differ from them.
"""

import ctypes
import functools
import re
from typing import Any

import numpy as np

from gpu_proof.build import CSRC
from gpu_proof.simulated import DeviceArray, SimulatedDevice

HEADERS = [CSRC / name for name in ("core/pass.h", "core/draft.h", "backend/cuda/kernels.h")]
_SCALARS = {
    **{"int32_t": ctypes.c_int32, "uint64_t": ctypes.c_uint64, "float": ctypes.c_float, "double": ctypes.c_double},
    **{"size_t": ctypes.c_size_t, "uint32_t": ctypes.c_uint32, "int64_t": ctypes.c_int64, "uint8_t": ctypes.c_uint8},
}


@functools.cache
def _header() -> str:
    text = "".join(path.read_text(encoding="utf-8") for path in HEADERS)
    return re.sub(r"//[^\n]*|kdtw::", "", text)


@functools.cache
def constants() -> dict[str, int]:
    """The headers' enumerators."""
    values: dict[str, int] = {}
    for body in re.findall(r"enum\b[^{;]*\{([^}]*)\}", _header()):
        following = 0
        for item in filter(None, (part.strip() for part in body.split(","))):
            name, _, value = (part.strip() for part in item.partition("="))
            values[name] = int(value, 0) if value else following
            following = values[name] + 1
    return values


def _type(text: str) -> Any:
    """The ctypes type of a declaration without its name."""
    text = " ".join(text.replace("const", "").split())
    if "*" in text:
        return ctypes.c_void_p
    if text in _SCALARS:
        return _SCALARS[text]
    if re.search(rf"\benum\s+(class\s+)?{text}\b", _header()):
        return ctypes.c_int32
    return struct(text)


@functools.cache
def struct(name: str) -> type[ctypes.Structure]:
    """A struct of the headers, as KdtwWeight.

    Raises:
        KeyError: there is none of that name.
    """
    match = re.search(rf"struct {name} \{{(.*?)\n\}};", _header(), re.DOTALL)
    if match is None:
        raise KeyError(f"no struct {name} in {HEADERS}")
    fields: list[tuple[str, Any]] = []
    for line in filter(None, (part.strip() for part in match[1].split(";"))):
        if found := re.fullmatch(r"[\w\s*]+\(\*(\w+)\)\(.*\)", line, re.DOTALL):
            fields.append((found[1], ctypes.c_void_p))
            continue
        base, _, rest = re.sub(r"\bconst\b", "", line).strip().partition(" ")
        if base.endswith("*"):
            base, rest = base[:-1], f"*{rest}"
        for declared in rest.split(","):
            part = re.fullmatch(r"\s*(\*?)\s*(\w+)\s*(?:\[(\w+)\])?\s*(?:=.*)?", declared)
            if part is None:
                raise KeyError(f"cannot read {line!r} of struct {name}")
            if part[3]:
                count = int(part[3]) if part[3].isdigit() else constants()[part[3]]
                fields.append((part[2], (ctypes.c_char if base == "char" else _type(base)) * count))
            else:
                fields.append((part[2], ctypes.c_void_p if part[1] else _type(base)))
    return type(name, (ctypes.Structure,), {"_fields_": fields})


class Kernels:
    """The table of functions of a simulated library; functions are called by name and raise SimulatedError."""

    def __init__(self, device: SimulatedDevice) -> None:
        self.device = device
        get = device.library.kdtw_cuda_table
        get.restype = ctypes.c_void_p
        address = get(constants()["kKdtwCudaVersion"])
        if not address:
            raise RuntimeError(f"the library's table is not of version {constants()['kKdtwCudaVersion']}")
        self._table = struct("KdtwCudaTable").from_address(address)
        body = re.search(r"struct KdtwCudaTable \{(.*?)\n\};", _header(), re.DOTALL)
        assert body is not None
        self._signatures = dict(re.findall(r"int32_t \(\*(\w+)\)\(([^;]*?)\);", body[1], re.DOTALL))

    def __getattr__(self, name: str) -> Any:
        if name not in self._signatures:
            raise AttributeError(f"the table has no function {name}")
        types = [_type(re.sub(r"\w+\s*$", "", argument)) for argument in self._signatures[name].split(",")]
        function = ctypes.CFUNCTYPE(ctypes.c_int32, *types)(getattr(self._table, name))

        def call(*values: Any) -> None:
            plain = [v.pointer if isinstance(v, DeviceArray) else v for v in values]
            pointers = [ctypes.addressof(v) if isinstance(v, (ctypes.Structure, ctypes.Array)) else v for v in plain]
            self.device.check(function(*pointers))

        return call

    def pointer(self) -> Any:
        """A place for a function's void** result; [0] is what it has put there."""
        return (ctypes.c_void_p * 1)()

    def make(self, name: str, /, **fields: Any) -> ctypes.Structure:
        """A struct of the headers, in host memory; device arrays become pointers."""
        plain = {key: v.pointer if isinstance(v, DeviceArray) else v for key, v in fields.items()}
        return struct(name)(**plain)

    def upload(self, values: list[ctypes.Structure]) -> DeviceArray:
        """Structs as an array in device memory."""
        return self.device.array(np.frombuffer(b"".join(bytes(v) for v in values), np.uint8))

    def download(self, name: str, array: DeviceArray) -> list[ctypes.Structure]:
        """The structs that a device array of bytes holds."""
        raw = array.numpy().tobytes()
        size = ctypes.sizeof(struct(name))
        return [struct(name).from_buffer_copy(raw[i : i + size]) for i in range(0, len(raw), size)]
