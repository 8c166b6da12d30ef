"""Compiles the stage's own kernels for this very CPU with LLVM, when a node starts, and runs them on torch's threads.

A kernel is a function of 64-bit numbers, addresses among them, whose last two say which of its items to do. What is
called is its entry, which divides the items among threads.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import llvmlite.binding as llvm
import torch
from llvmlite import ir

FLOAT, INT, LONG, VOID = ir.FloatType(), ir.IntType(32), ir.IntType(64), ir.VoidType()
BYTE, POINTER = ir.IntType(8), ir.PointerType()
ENTRY = "entry"


@dataclass(frozen=True, slots=True)
class Kernel:
    """Machine code: `call(the kernel's arguments, items, threads)`. The engine keeps it in memory."""

    call: Callable[..., None]
    engine: llvm.ExecutionEngine


@cache
def openmp() -> ctypes.CDLL | None:
    """The OpenMP library whose threads torch uses; None if it is not GNU's."""
    try:
        with open("/proc/self/maps") as maps:
            return next((ctypes.CDLL(line.split()[-1]) for line in maps if "libgomp" in line), None)
    except OSError:
        return None


def can_compile(device: torch.device) -> bool:
    """Whether there are kernels for this device here."""
    return device.type == "cpu" and openmp() is not None


@cache
def features() -> dict[str, bool]:
    """What this CPU can do beyond the least of its kind, by LLVM's names."""
    return dict(llvm.get_host_cpu_features())


def new_module() -> ir.Module:
    """An empty module for this machine."""
    module = ir.Module()
    module.triple = llvm.get_process_triple()
    return module


def compile_kernel(module: ir.Module, kernel: ir.Function) -> Kernel:
    """Machine code for a kernel, a tenth to a fifth of a second."""
    write_entry(module, kernel)
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    library = openmp()
    assert library is not None
    for name in ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads"):
        llvm.add_symbol(name, ctypes.cast(getattr(library, name), ctypes.c_void_p).value)
    machine = llvm.Target.from_triple(module.triple).create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3, jit=True
    )
    parsed = llvm.parse_assembly(str(module))
    parsed.verify()
    tuning = llvm.create_pipeline_tuning_options(speed_level=1)
    tuning.loop_unrolling = False
    passes = llvm.create_pass_builder(machine, tuning)
    passes.getModulePassManager().run(parsed, passes)
    engine = llvm.create_mcjit_compiler(parsed, machine)
    engine.finalize_object()
    signature = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * len(kernel.args))
    return Kernel(signature(engine.get_function_address(ENTRY)), engine)


def write_entry(module: ir.Module, kernel: ir.Function) -> None:
    """The kernel's entry, and `part`, which OpenMP runs on every thread with the address of the arguments."""
    count = len(kernel.args) - 1  # the items' number in the place of the first and the end

    part = ir.Function(module, ir.FunctionType(VOID, [POINTER]), "part")
    part.linkage = "internal"
    b = ir.IRBuilder(part.append_basic_block())
    *given, items = (b.load(b.gep(part.args[0], [LONG(i)], source_etype=LONG), typ=LONG) for i in range(count))
    mine = b.zext(b.call(declare(module, "omp_get_thread_num", INT, []), []), LONG)
    threads = b.zext(b.call(declare(module, "omp_get_num_threads", INT, []), []), LONG)
    first, end = b.sdiv(b.mul(items, mine), threads), b.sdiv(b.mul(items, b.add(mine, LONG(1))), threads)
    with b.if_then(b.icmp_signed("<", first, end)):
        b.call(kernel, [*given, first, end])
    b.ret_void()

    entry = ir.Function(module, ir.FunctionType(VOID, [LONG] * (count + 1)), ENTRY)
    *arguments, threads = entry.args
    b = ir.IRBuilder(entry.append_basic_block())
    with b.if_else(b.icmp_signed("==", threads, LONG(1))) as (alone, together):
        with alone:
            b.call(kernel, [*arguments[:-1], LONG(0), arguments[-1]])
        with together:
            place = b.alloca(LONG, count)
            for i, value in enumerate(arguments):
                b.store(value, b.gep(place, [LONG(i)]))
            parallel = declare(module, "GOMP_parallel", VOID, [POINTER, POINTER, INT, INT])
            b.call(parallel, [part, b.bitcast(place, POINTER), b.trunc(threads, INT), INT(0)])
    b.ret_void()


def declare(module: ir.Module, name: str, result: ir.Type, arguments: list[ir.Type]) -> ir.Function:
    """A function from outside, declared once."""
    return module.globals.get(name) or ir.Function(module, ir.FunctionType(result, arguments), name)


def internal(module: ir.Module, name: str, arguments: list[ir.Type]) -> ir.Function:
    """A function that only this module calls, kept out of line."""
    function = ir.Function(module, ir.FunctionType(VOID, arguments), name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    return function


@contextmanager
def counting(b: ir.IRBuilder, first: ir.Value, end: ir.Value, step: ir.Value) -> Iterator[ir.Value]:
    """A loop, `for i in range(first, end, step)`, that is run at least once."""
    place = b.alloca(LONG)
    b.store(first, place)
    body, after = b.append_basic_block(), b.append_basic_block()
    b.branch(body)
    b.position_at_end(body)
    i = b.load(place, typ=LONG)
    yield i
    following = b.add(i, step)
    b.store(following, place)
    b.cbranch(b.icmp_signed("<", following, end), body, after)
    b.position_at_end(after)


def scratch(b: ir.IRBuilder, numbers: int) -> ir.Value:
    """Room for so many float32, while the function runs."""
    return b.inttoptr(b.ptrtoint(b.alloca(FLOAT, numbers), LONG), POINTER)


def smaller(b: ir.IRBuilder, one: ir.Value, other: ir.Value) -> ir.Value:
    """min(one, other)."""
    return b.select(b.icmp_signed("<", one, other), one, other)


def address(b: ir.IRBuilder, base: ir.Value, index: ir.Value, size: int = 4) -> ir.Value:
    """Where number `index` lies that takes `size` bytes, from `base` on: a pointer, or its address."""
    pointer = b.inttoptr(base, POINTER) if base.type == LONG else base
    return b.gep(pointer, [b.mul(index, LONG(size))], source_etype=BYTE)


def table_row(b: ir.IRBuilder, table: ir.Value, row: ir.Value, fields: int) -> list[ir.Value]:
    """The 64-bit numbers of a row of a table that has so many in each."""
    first = b.mul(row, LONG(fields))
    return [b.load(address(b, table, b.add(first, LONG(field)), 8), typ=LONG) for field in range(fields)]
