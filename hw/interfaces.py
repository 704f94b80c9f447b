"""Signatures between the blocks of the accelerator.

Inside, a value that must be taken at once has only `valid` (the receiver never refuses); what can wait is an `amaranth.lib.stream`.
"""

from amaranth.hdl import signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from .config import AcceleratorConfig
from .isa import INSTRUCTION_BITS, Unit

__all__ = ["BEAT_BITS", "Axi4", "Axi4Lite", "BufferWrite", "Instructions", "Run", "StagedWrite", "Sums", "SumsRead", "UnitControl"]

BEAT_BITS = 64


class Run(data.Struct):
    """Consecutive beats in memory, of any length; the DMA cuts them into bursts."""

    address: unsigned(32)  # bytes, a multiple of 8
    beats: unsigned(14)    # at least 1


#: Instructions whose tokens have been taken, to a unit.
Instructions = stream.Signature(unsigned(INSTRUCTION_BITS))


class UnitControl(wiring.Signature):
    """What a unit tells the dispatcher: `post` bit u pulses one cycle for each token left for unit u,
    `retired` pulses as an instruction finishes, in order; `busy` until nothing of the unit's work is left in flight."""

    def __init__(self):
        super().__init__({"post": Out(len(Unit)), "retired": Out(1), "busy": Out(1)})


class BufferWrite(wiring.Signature):
    """One beat into an on-chip buffer; `lane` selects the 64 bits of a wider word."""

    def __init__(self, address_width: int, lane_width: int):
        super().__init__({"valid": Out(1), "address": Out(address_width), "lane": Out(lane_width), "data": Out(BEAT_BITS)})


class SumsRead(wiring.Signature):
    """Request for the sums of one pixel: `outputs` / `drain_lanes` cycles of `Sums` follow after a fixed latency, so as many cycles lie between requests."""

    def __init__(self):
        super().__init__({"valid": Out(1), "bank": Out(1), "pixel": Out(9)})


class Sums(wiring.Signature):
    """Sums of `drain_lanes` neighbouring output channels, lowest channels first."""

    def __init__(self, config: AcceleratorConfig):
        super().__init__({"valid": Out(1), "data": Out(data.ArrayLayout(signed(32), config.drain_lanes))})


class StagedWrite(wiring.Signature):
    """Requantized codes of one channel group of a pixel into the staging buffer (groups as in `isa.Drain`)."""

    def __init__(self, config: AcceleratorConfig):
        super().__init__({"valid": Out(1), "group": Out(3), "pixel": Out(10), "data": Out(data.ArrayLayout(signed(8), config.drain_lanes))})


class Axi4(wiring.Signature):
    """AXI4 manager: 64-bit data, 32-bit byte addresses, INCR bursts of full beats, one ID (0), so responses come in order.

    The ID signals are there because bus models and interconnects insist on them; the manager drives 0 and does not look at what comes back.
    """

    def __init__(self):
        address = {"id": Out(1), "addr": Out(32), "len": Out(8), "size": Out(3), "burst": Out(2), "valid": Out(1), "ready": In(1)}
        super().__init__(
            {f"ar{k}": v for k, v in address.items()} | {f"aw{k}": v for k, v in address.items()}
            | {"rid": In(1), "rdata": In(64), "rresp": In(2), "rlast": In(1), "rvalid": In(1), "rready": Out(1)}
            | {"wdata": Out(64), "wstrb": Out(8), "wlast": Out(1), "wvalid": Out(1), "wready": In(1)}
            | {"bid": In(1), "bresp": In(2), "bvalid": In(1), "bready": Out(1)}
        )


class Axi4Lite(wiring.Signature):
    """AXI4-Lite manager's view: 32-bit data, 12-bit byte addresses."""

    def __init__(self):
        super().__init__({
            "awaddr": Out(12), "awvalid": Out(1), "awready": In(1), "wdata": Out(32), "wstrb": Out(4), "wvalid": Out(1), "wready": In(1),
            "bresp": In(2), "bvalid": In(1), "bready": Out(1), "araddr": Out(12), "arvalid": Out(1), "arready": In(1),
            "rdata": In(32), "rresp": In(2), "rvalid": In(1), "rready": Out(1),
        })
