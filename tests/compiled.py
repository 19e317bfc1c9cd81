"""Kernels for CUDA compiled for a device that is not there: ``python -m tests.compiled``.

Each call is made as it is on a device; in the place of its launch its kernel is compiled.
"""

from dataclasses import astuple
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from bluesky_cmf.nmf import blocks, kernels, sweeps
from bluesky_cmf.nmf.deviceblocks import DeviceBlocks
from bluesky_cmf.nmf.devicesweeps import DeviceSweeps
from bluesky_cmf.nmf.eventtables import EventBuffers
from bluesky_cmf.nmf.kernels import cuda, cudaevent
from bluesky_cmf.nmf.rules import Rules

TARGET = GPUTarget("cuda", 90, 32)
TYPES = {
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
OPTIONS = {"num_warps", "maxnreg"}
compiled: dict[str, int] = {}


def compile_in_place(kernel: JITFunction, grid: Any) -> Any:
    def call(*args: Any, **settings: Any) -> None:
        options = {name: settings.pop(name) for name in OPTIONS & settings.keys()}
        given = dict(zip(kernel.arg_names, args, strict=False))
        signature = dict.fromkeys(settings, "constexpr")
        attributes = {}
        for place, (name, value) in enumerate(given.items()):
            is_tensor = isinstance(value, torch.Tensor)
            signature[name] = TYPES[value.dtype] if is_tensor else "i32"
            if is_tensor or (name not in kernel.do_not_specialize and value % 16 == 0):
                attributes[(place,)] = [["tt.divisibility", 16]]
        assert list(signature.keys() - set(kernel.arg_names)) == []
        assert len(signature) == len(kernel.arg_names), kernel.__name__
        signature = {name: signature[name] for name in kernel.arg_names}
        source = ASTSource(kernel, signature, constexprs=settings, attrs=attributes)
        found = triton.compile(source, target=TARGET, options=options)
        compiled[kernel.__name__] = len(found.asm["cubin"])

    return call


def main() -> None:
    JITFunction.__getitem__ = compile_in_place
    kernels._cpu = lambda name: None
    blocks._FIRST_ROWS = 64
    for K, dtype in ((3, torch.float32), (8, torch.float64)):
        X = DeviceBlocks(160, dtype=dtype, device=torch.device("cpu"))
        X.append(torch.rand(130, 160))
        H, table = torch.rand(K, 160, dtype=torch.float64), torch.zeros(19, dtype=torch.int64)
        flags, rows = torch.ones(K, dtype=torch.int32), H.new_zeros(17, 160)
        cuda.warm_up(torch.device("cpu"))
        cuda.coordinate_descent(H, H @ H.T, H, flags, 2)
        weights, some = H.new_zeros(K, 17), H.new_zeros(17)
        cudaevent.take(table, rows, some, weights, some[0], dtype=dtype, block_rows=256)
        cudaevent.put(table, weights, some, H, some[0], dtype=dtype)
        for rows_settled in (slice(16, 17), slice(0, 17)):
            buffers = EventBuffers.of(17, H)
            cudaevent.settle(buffers, H @ H.T, H @ H.T, flags, rows_settled, 48)
        start = H.new_zeros(K, 130)
        on_device = DeviceSweeps(
            X, H, start, Rules((1,)), objective=1.0, pace=astuple(sweeps.Pace()), passes=(64, 4)
        )
        on_device._launch()
    for name, size in sorted(compiled.items()):
        print(f"{name} {size}")


if __name__ == "__main__":
    main()
