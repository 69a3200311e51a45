"""The simulated device from Python: schedules, counters and device memory, by ctypes."""

import contextlib
import ctypes
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kdtw_fast import _core

ORDERS = ("forward", "reverse", "random")
CUDA_MEMCPY_DEFAULT = 4


class SimulatedError(RuntimeError):
    """A kernel or a call of the runtime failed; the message is what the simulated device said."""


@dataclass(frozen=True)
class Schedule:
    """In which order threads run that may.

    Attributes:
        order: "forward", "reverse" or "random": among threads released together, and among blocks.
        depth_first: threads released by a barrier run before those that have not reached it.
        seed: of the random order.
        resident_blocks: blocks of a launch that run at a time, their threads interleaved.
    """

    order: str = "forward"
    depth_first: bool = False
    seed: int = 1
    resident_blocks: int = 1

    def __str__(self) -> str:
        seed = f"-{self.seed}" if self.order == "random" else ""
        return f"{self.order}{seed}{'-deep' if self.depth_first else ''}-{self.resident_blocks}"


# A kernel whose result depends on the order of its threads differs in one of these.
SCHEDULES = [
    Schedule("forward"),
    Schedule("reverse", resident_blocks=3),
    Schedule("forward", depth_first=True, resident_blocks=2),
    Schedule("reverse", depth_first=True),
    *[Schedule("random", bool(seed % 2), seed, 1 + seed % 3) for seed in range(1, 5)],
]


class DeviceArray:
    """Memory of the simulated device that holds an array; given to kernels as a pointer."""

    def __init__(self, device: "SimulatedDevice", pointer: int, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.device, self.pointer, self.shape, self.dtype = device, pointer, shape, dtype

    @property
    def _as_parameter_(self) -> ctypes.c_void_p:
        return ctypes.c_void_p(self.pointer)

    def put(self, values: np.ndarray) -> None:
        """Replaces what the memory holds."""
        assert (values.shape, values.dtype) == (self.shape, self.dtype)
        host = np.ascontiguousarray(values)
        self.device.copy(self, ctypes.c_void_p(host.ctypes.data), host.nbytes)

    def numpy(self) -> np.ndarray:
        """What the memory holds now; waits for the device."""
        host = np.empty(self.shape, self.dtype)
        self.device.copy(ctypes.c_void_p(host.ctypes.data), self, host.nbytes)
        return host


class SimulatedDevice:
    """A library that gpu_proof.build.build_simulated made.

    Attributes:
        path: the library's.
        library: for calling its functions by ctypes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.library = library = ctypes.CDLL(str(path))
        self._arrays: list[DeviceArray] = []
        for function in (library.kdtw_sim_counters, library.kdtw_sim_traffic, library.cudaGetErrorString):
            function.restype = ctypes.c_char_p
        library.cudaMalloc.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        library.cudaFree.argtypes = [ctypes.c_void_p]
        library.cudaMemcpy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        library.kdtw_sim_memory_in_use.restype = ctypes.c_uint64
        library.kdtw_sim_schedule.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_uint64, ctypes.c_int, ctypes.c_int]

    @property
    def checks(self) -> bool:
        """Whether the library checks every load and store."""
        return bool(self.library.kdtw_sim_checks())

    def schedule(self, schedule: Schedule = Schedule(), *, lazy: bool = False) -> None:
        """Sets the order of threads; lazy: nothing runs before the host waits for it."""
        order = ORDERS.index(schedule.order)
        self.library.kdtw_sim_schedule(order, schedule.depth_first, schedule.seed, schedule.resident_blocks, lazy)

    def conditional_nodes(self, there: bool) -> None:
        """Whether graphs may have WHILE nodes; not all devices and drivers have them."""
        self.library.kdtw_sim_conditional_nodes(there)

    def largest_loop(self, nodes: int = 1 << 30) -> None:
        """Loops whose bodies have more nodes are refused when their graph is instantiated."""
        self.library.kdtw_sim_largest_loop(nodes)

    def devices(self, count: int = 1) -> None:
        """How many devices there are; they share memory, but each has streams of its own."""
        self.library.kdtw_sim_devices(count)

    def memory(self, device: int = 0, host: int = 0) -> None:
        """Bytes of device memory, and of pinned memory, that there are from now on; 0: as many as fit."""
        self.library.kdtw_sim_memory(ctypes.c_uint64(device), ctypes.c_uint64(host))

    @property
    def device_memory_in_use(self) -> int:
        """Bytes."""
        return int(self.library.kdtw_sim_memory_in_use(0))

    @property
    def host_memory_in_use(self) -> int:
        """Bytes of pinned memory."""
        return int(self.library.kdtw_sim_memory_in_use(1))

    @property
    def chosen(self) -> int:
        """The calling thread's device."""
        device = ctypes.c_int(-1)
        self.check(self.library.cudaGetDevice(ctypes.byref(device)))
        return device.value

    @chosen.setter
    def chosen(self, device: int) -> None:
        self.check(self.library.cudaSetDevice(device))

    def allocate(self, size: int) -> int:
        """The address of so many bytes of device memory; cudaFree frees them."""
        pointer = ctypes.c_void_p()
        self.check(self.library.cudaMalloc(ctypes.byref(pointer), size))
        return pointer.value or 0

    def copy(self, to: object, source: object, size: int) -> None:
        """Copies bytes to or from the device when all that was enqueued has been done."""
        self.check(self.library.cudaMemcpy(to, source, size, CUDA_MEMCPY_DEFAULT))

    def empty(self, shape: int | tuple[int, ...], dtype: np.typing.DTypeLike = np.float32) -> DeviceArray:
        """Device memory that nobody has written."""
        shape = (shape,) if isinstance(shape, int) else shape
        kind = np.dtype(dtype)
        self._arrays.append(DeviceArray(self, self.allocate(int(np.prod(shape)) * kind.itemsize), shape, kind))
        return self._arrays[-1]

    def array(self, values: np.typing.ArrayLike) -> DeviceArray:
        """Device memory with these values."""
        host = np.ascontiguousarray(values)
        to = self.empty(host.shape, host.dtype)
        to.put(host)
        return to

    @contextlib.contextmanager
    def engine(self) -> Iterator[str]:
        """Gives the engine this device in the place of a GPU, and its name there.

        The engine's pool of memory, which rounds sizes up and uses memory again, is left out: the checker sees a
        kernel that reads past an array's end or what nobody has written.
        """
        before = _core.build_info()["cuda"]
        _core.use_cuda_library(str(self.path))
        _core.use_cuda_allocator(
            lambda device, size, stream: self.allocate(size), self.library.cudaFree, lambda device: 0
        )
        try:
            yield "cuda:0"
        finally:
            self.library.cudaGetLastError()
            _core.use_cuda_allocator(None, None, None)
            if before:
                _core.use_cuda_library(before["library"])

    def release(self) -> None:
        """Frees every array that was made here."""
        for array in self._arrays:
            self.library.cudaFree(array)
        self._arrays.clear()

    def check(self, error: int) -> None:
        """Raises SimulatedError with the device's words when `error` is not 0; the device can be used again."""
        if error:
            message = self.library.cudaGetErrorString(error).decode()
            self.library.cudaGetLastError()  # takes it away
            raise SimulatedError(message)

    def reset_counters(self) -> None:
        """Starts counting from zero."""
        self.library.kdtw_sim_reset_counters()

    def counters(self) -> dict[str, int]:
        """What was counted since the last reset; gpu_proof/sim/control.h says what each is."""
        lines = self.library.kdtw_sim_counters().decode().splitlines()
        return {name: int(value) for name, value in (line.split("=") for line in lines)}

    @contextlib.contextmanager
    def traffic(self) -> Iterator[list[dict]]:
        """Counts memory requests of the launches inside, one dictionary a launch; checked libraries only."""
        launches: list[dict] = []
        self.library.kdtw_sim_count_traffic(1)
        try:
            yield launches
            launches += map(json.loads, self.library.kdtw_sim_traffic().decode().splitlines())
        finally:
            self.library.kdtw_sim_count_traffic(0)
