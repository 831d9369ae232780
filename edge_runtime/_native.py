"""The C core through ctypes: signatures of `csrc/sfd.h`, and its errors as exceptions."""

from __future__ import annotations

import ctypes
import enum
import functools
import importlib.resources
import mmap
import os
from typing import Any, NoReturn

from sparsyfed.edge_runtime.errors import (
    ArenaError,
    BackendError,
    DivergedError,
    FormatError,
    InputError,
    MismatchError,
    UnsupportedOperationError,
)

BUILD_ADVICE = (
    "install the package with `pip install .` where a C compiler is, or set SPARSYFED_LIBRARY to "
    "the path of a built libsfd.so"
)


class ErrorCode(enum.IntEnum):
    """The codes of `enum sfd_error`."""

    OK = 0
    ERR_ARGUMENT = -1
    ERR_LENGTH = -2
    ERR_MAGIC = -3
    ERR_VERSION = -4
    ERR_CRC = -5
    ERR_STRUCTURE = -6
    ERR_LIMIT = -7
    ERR_ARENA = -8
    ERR_MISMATCH = -9
    ERR_INDEX = -10
    ERR_VALUE = -11
    ERR_INPUT = -12
    ERR_LABEL = -13
    ERR_DIVERGED = -14
    ERR_BATCH = -15
    ERR_SUPPORT = -16
    ERR_CODEC = -17
    ERR_CAPACITY = -18
    ERR_KERNELS = -19
    ERR_THREADS = -20
    ERR_OPERATION = -21


WITHOUT_PLACE = (
    ErrorCode.ERR_ARGUMENT,
    ErrorCode.ERR_ARENA,
    ErrorCode.ERR_BATCH,
    ErrorCode.ERR_THREADS,
)
"""Errors that are not about a byte of a file."""


class BufferKind(enum.IntEnum):
    """What a planned buffer is for: `enum sfd_buffer_kind`."""

    TABLES = 0
    INDEX = 1
    WEIGHT = 2
    WORKING_WEIGHT = 3
    DENSE = 4
    ACTIVATION = 5
    SAVED_INPUT = 6
    MASK = 7
    STATISTICS = 8
    GRADIENT = 9
    SCRATCH = 10


class Action(enum.IntEnum):
    """What a step of the schedule does: `enum sfd_action`."""

    FORWARD = 0
    LOSS = 1
    RESTORE = 2
    PACK = 3
    BACKWARD = 4
    UPDATE = 5


class MemoryChoice(enum.IntEnum):
    """What to do about memory: `enum sfd_memory`."""

    FAST = 0
    SMALL = 1
    LAYERWISE = 2


class KernelSet(enum.IntEnum):
    """The kernel sets: `enum sfd_kernel_set`."""

    AUTOMATIC = 0
    PORTABLE = 1
    SSE2 = 2
    AVX2 = 3
    AVX512 = 4
    NEON = 5


class Target(enum.IntEnum):
    """Type of the targets of a batch: `enum sfd_target`."""

    INT32 = 1
    INT64 = 2
    FLOAT32 = 3


class Problem(ctypes.Structure):
    """Where a parser stopped: `struct sfd_problem`."""

    _fields_ = (
        ("position", ctypes.c_uint32),
        ("got", ctypes.c_uint32),
        ("wanted", ctypes.c_uint32),
    )


class Buffer(ctypes.Structure):
    """One region of the arena: `struct sfd_buffer`."""

    _fields_ = (
        ("offset", ctypes.c_uint64),
        ("bytes", ctypes.c_uint64),
        ("first_step", ctypes.c_uint32),
        ("last_step", ctypes.c_uint32),
        ("kind", ctypes.c_uint16),
        ("owner", ctypes.c_uint16),
    )


class PlannedStep(ctypes.Structure):
    """One step of the schedule: `struct sfd_planned_step`."""

    _fields_ = (("action", ctypes.c_uint16), ("operation", ctypes.c_uint16))


class Options(ctypes.Structure):
    """How a session runs: `struct sfd_options`."""

    _fields_ = (
        ("kernels", ctypes.c_int32),
        ("threads", ctypes.c_uint32),
        ("memory", ctypes.c_int32),
        ("arena_bytes", ctypes.c_uint64),
        ("layout", ctypes.c_void_p),
        ("layout_bytes", ctypes.c_uint32),
    )


class MultiplyAdds(ctypes.Structure):
    """`struct sfd_multiply_adds`."""

    _fields_ = (
        ("forward", ctypes.c_uint64),
        ("d_input", ctypes.c_uint64),
        ("d_weight", ctypes.c_uint64),
        ("recomputed", ctypes.c_uint64),
    )


class Plan(ctypes.Structure):
    """`struct sfd_plan`."""

    _fields_ = (
        ("arena_bytes", ctypes.c_uint64),
        ("transient_bytes", ctypes.c_uint64),
        ("live_peak_bytes", ctypes.c_uint64),
        ("live_peak_step", ctypes.c_uint32),
        ("buffer_count", ctypes.c_uint32),
        ("step_count", ctypes.c_uint32),
        ("step", MultiplyAdds),
    )


class Counters(ctypes.Structure):
    """`struct sfd_counters`."""

    _fields_ = (
        ("done", MultiplyAdds),
        ("evaluation", ctypes.c_uint64),
        ("steps", ctypes.c_uint64),
    )


class ParameterView(ctypes.Structure):
    """A parameter inside a session: `struct sfd_parameter_view`."""

    _fields_ = (
        ("value", ctypes.c_void_p),
        ("gradient", ctypes.c_void_p),
        ("row_pointer", ctypes.c_void_p),
        ("column", ctypes.c_void_p),
        ("rows", ctypes.c_uint32),
        ("columns", ctypes.c_uint32),
        ("count", ctypes.c_uint32),
        ("index_width", ctypes.c_uint32),
        ("kind", ctypes.c_uint32),
    )


_ADDRESS = ctypes.c_void_p
_SIZE = ctypes.c_size_t
_U32 = ctypes.c_uint32
_BYTES = (_ADDRESS, _SIZE)
_PROBLEM = ctypes.POINTER(Problem)
_OPTIONS = ctypes.POINTER(Options)
_LOSS = ctypes.POINTER(ctypes.c_float)
_BATCH = (_ADDRESS, _ADDRESS, _ADDRESS, ctypes.c_int, _U32)

_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "sfd_error_string": (ctypes.c_char_p, (ctypes.c_int,)),
    "sfd_kernels_available": (ctypes.c_int, (ctypes.c_int32,)),
    "sfd_kernels_name": (ctypes.c_char_p, (ctypes.c_int32,)),
    "sfd_artifact_check": (ctypes.c_int, (*_BYTES, _PROBLEM)),
    "sfd_container_check": (ctypes.c_int, (*_BYTES, _PROBLEM)),
    "sfd_update_check": (ctypes.c_int, (*_BYTES, *_BYTES, _PROBLEM)),
    "sfd_state_check": (ctypes.c_int, (*_BYTES, *_BYTES, _PROBLEM)),
    "sfd_workspace_bytes": (ctypes.c_int, (*_BYTES, ctypes.POINTER(ctypes.c_uint64), _PROBLEM)),
    "sfd_plan": (
        ctypes.c_int,
        (*_BYTES, *_BYTES, _U32, _OPTIONS, *_BYTES, ctypes.POINTER(Plan), _PROBLEM),
    ),
    "sfd_plan_step": (ctypes.c_int, (_ADDRESS, _U32, ctypes.POINTER(PlannedStep))),
    "sfd_plan_buffer": (ctypes.c_int, (_ADDRESS, _U32, ctypes.POINTER(Buffer))),
    "sfd_plan_layout": (
        ctypes.c_int,
        (_ADDRESS, ctypes.c_char_p, ctypes.c_uint64, ctypes.POINTER(ctypes.c_uint64)),
    ),
    "sfd_open": (
        ctypes.c_int,
        (_ADDRESS, *_BYTES, *_BYTES, ctypes.POINTER(_ADDRESS), _PROBLEM),
    ),
    "sfd_close": (None, (_ADDRESS,)),
    "sfd_step": (ctypes.c_int, (*_BATCH, ctypes.c_float, ctypes.c_float, _LOSS)),
    "sfd_watch": (ctypes.c_int, (_ADDRESS, _ADDRESS)),
    "sfd_gradients": (ctypes.c_int, (*_BATCH, _LOSS)),
    "sfd_evaluate": (ctypes.c_int, (*_BATCH, _LOSS, ctypes.POINTER(_U32))),
    "sfd_input_size": (_U32, (_ADDRESS,)),
    "sfd_parameter_count": (_U32, (_ADDRESS,)),
    "sfd_parameter": (ctypes.c_int, (_ADDRESS, _U32, ctypes.POINTER(ParameterView))),
    "sfd_update_encode": (
        ctypes.c_int,
        (_ADDRESS, _ADDRESS, _U32, _U32, _ADDRESS, _SIZE, ctypes.POINTER(_SIZE)),
    ),
    "sfd_counters": (ctypes.c_int, (_ADDRESS, ctypes.POINTER(Counters))),
    "sfd_quantize": (ctypes.c_int, (*_BYTES, ctypes.c_float, ctypes.c_int32, _ADDRESS)),
    "sfd_arena_paint": (None, _BYTES),
    "sfd_arena_touched": (_SIZE, _BYTES),
}


@functools.cache
def library() -> ctypes.CDLL:
    """The C core, loaded once. Raises BackendError when it is not there."""
    override = os.environ.get("SPARSYFED_LIBRARY")
    resource = importlib.resources.files("sparsyfed.edge_runtime") / "libsfd.so"
    try:
        if override:
            loaded = ctypes.CDLL(override)
        else:
            with importlib.resources.as_file(resource) as path:
                loaded = ctypes.CDLL(str(path))
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(loaded, name)
            function.restype = result
            function.argtypes = arguments
    except (OSError, AttributeError) as error:
        raise BackendError(f"the native library does not load: {error}; {BUILD_ADVICE}") from error
    return loaded


def raise_error(code: int, subject: str, problem: Problem | None = None) -> NoReturn:
    """Raise the exception of a negative sfd_error; `subject` names what was wrong."""
    text = library().sfd_error_string(code).decode()
    message = f"{subject}: {text}"
    if problem is not None and (problem.position or problem.got or problem.wanted):
        place = "" if code in WITHOUT_PLACE else f"at byte {problem.position}: "
        message += f" ({place}got {problem.got}, wanted {problem.wanted})"
    match code:
        case ErrorCode.ERR_ARENA:
            got, wanted = (problem.got, problem.wanted) if problem else (0, 0)
            raise ArenaError(message, got=got, wanted=wanted)
        case ErrorCode.ERR_MISMATCH | ErrorCode.ERR_SUPPORT:
            raise MismatchError(message)
        case ErrorCode.ERR_DIVERGED:
            raise DivergedError(message)
        case (
            ErrorCode.ERR_ARGUMENT
            | ErrorCode.ERR_INPUT
            | ErrorCode.ERR_LABEL
            | ErrorCode.ERR_BATCH
            | ErrorCode.ERR_CAPACITY
            | ErrorCode.ERR_KERNELS
            | ErrorCode.ERR_THREADS
        ):
            raise InputError(message)
        case ErrorCode.ERR_OPERATION:
            raise UnsupportedOperationError(message)
        case _:
            raise FormatError(message)


def check_artifact(data: memoryview) -> None:
    """Raise FormatError unless the bytes are an artifact."""
    problem = Problem()
    code = library().sfd_artifact_check(address(data), data.nbytes, problem)
    if code:
        raise_error(code, f"artifact of {data.nbytes} bytes", problem)


def check_container(data: memoryview) -> None:
    """Raise FormatError unless the bytes are a state or an update."""
    problem = Problem()
    code = library().sfd_container_check(address(data), data.nbytes, problem)
    if code:
        raise_error(code, f"state or update of {data.nbytes} bytes", problem)


def check_update(data: memoryview, base: memoryview) -> None:
    """Raise FormatError unless the bytes are an update, MismatchError unless they fit `base`."""
    problem = Problem()
    code = library().sfd_update_check(
        address(data), data.nbytes, address(base), base.nbytes, problem
    )
    if code:
        raise_error(code, f"update of {data.nbytes} bytes", problem)


class _PyBuffer(ctypes.Structure):
    """`Py_buffer` of CPython's stable ABI."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


_get_buffer = ctypes.pythonapi.PyObject_GetBuffer
_get_buffer.argtypes = (ctypes.py_object, ctypes.POINTER(_PyBuffer), ctypes.c_int)
_get_buffer.restype = ctypes.c_int
_release_buffer = ctypes.pythonapi.PyBuffer_Release
_release_buffer.argtypes = (ctypes.POINTER(_PyBuffer),)
_release_buffer.restype = None
_view_of_memory = ctypes.pythonapi.PyMemoryView_FromMemory
_view_of_memory.argtypes = (ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int)
_view_of_memory.restype = ctypes.py_object
_PYBUF_SIMPLE = 0
_PYBUF_READ = 0x100


def address(view: memoryview) -> int:
    """Address of a C-contiguous buffer, read-only ones too; good while the view lives."""
    # ctypes' own from_buffer refuses read-only memory, which batches and files often are.
    buffer = _PyBuffer()
    _get_buffer(view, buffer, _PYBUF_SIMPLE)
    place = buffer.buf
    _release_buffer(buffer)
    return place or 0


def memory_at(place: int, size: int) -> memoryview:
    """Read-only view of `size` bytes at an address that the core returned."""
    view: memoryview = _view_of_memory(place, size, _PYBUF_READ)
    return view


class Memory:
    """Zeroed memory of the system, aligned to a page, given back by `close`."""

    def __init__(self, size: int) -> None:
        try:
            self._map = mmap.mmap(-1, size)
        except (OSError, OverflowError) as error:
            raise ArenaError(
                f"the system does not give {size} bytes: {error}", got=0, wanted=size
            ) from error
        self.size = size
        self.address = address(memoryview(self._map))

    def close(self) -> None:
        """Give the memory back."""
        self._map.close()
