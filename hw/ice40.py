"""Hard blocks of the iCE40 UP5K: its single-port RAMs and its multipliers, asked of the platform (`get_single_port_ram`, `get_byte_multiplier`) as those of
`primitives.py` are; a platform without these methods gets behavioural twins of the same latency.
"""

from amaranth.hdl import Cat, ClockSignal, Const, Instance, Module, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from .interfaces import BEAT_BITS
from .primitives import delayed

__all__ = ["BEATS", "BeatMemory", "BeatPort", "ByteMultiplier", "Ice40Primitives"]

#: Words of a single-port RAM.
BEATS = 1 << 14
_BYTES = BEAT_BITS // 8


class BeatPort(wiring.Signature):
    """Access to a memory of beats: one a cycle, in which `valid`. Bit k of `write` is for byte k, of `write_data` of `write_width` bits, over and over; without any,
    `read_data` follows in the next cycle, for that cycle alone. 0 bits: who asks does not say what is written."""

    def __init__(self, write_width: int = BEAT_BITS):
        members = {"valid": Out(1), "address": Out(range(BEATS)), "write": Out(_BYTES), "read_data": In(BEAT_BITS)}
        super().__init__(members | ({"write_data": Out(write_width)} if write_width else {}))


class BeatMemory(wiring.Component):
    """128 KiB: four single-port RAMs side by side. After a write `read_data` is undefined."""

    port: In(BeatPort())

    def elaborate(self, platform):
        m = Module()
        port = self.port
        if hasattr(platform, "get_single_port_ram"):
            for k in range(4):
                m.submodules[f"ram{k}"] = platform.get_single_port_ram(
                    port.valid, port.address, port.write[2 * k :][:2], port.write_data.word_select(k, 16), port.read_data.word_select(k, 16))
            return m
        m.submodules.memory = memory = Memory(shape=BEAT_BITS, depth=BEATS, init=[])
        write, read = memory.write_port(granularity=8), memory.read_port()
        m.d.comb += [
            write.addr.eq(port.address), write.data.eq(port.write_data), write.en.eq(port.write & port.valid.replicate(_BYTES)),
            read.addr.eq(port.address), read.en.eq(port.valid & ~port.write.any()), port.read_data.eq(read.data),
        ]
        return m


class ByteMultiplier(wiring.Component):
    """sums[k] = addends[k] + a · weights[k], all signed, modulo 2^16: one cell in its mode of two products. The addends come two cycles after `a`, the sums in the
    same cycle or, `registered`, in the next.

    The weights taken in the last cycle with `load`, that of `a` included, are those that count.
    """

    def __init__(self, *, registered: bool):
        if not isinstance(registered, bool):
            raise TypeError(f"registered must be a bool, not {registered!r}")
        self._registered = registered
        super().__init__({
            "a": In(signed(8)), "weights": In(data.ArrayLayout(signed(8), 2)), "load": In(1), "addends": In(data.ArrayLayout(signed(16), 2)),
            "sums": Out(data.ArrayLayout(signed(16), 2)),
        })

    @property
    def registered(self) -> bool:
        """The sums have a register."""
        return self._registered

    def elaborate(self, platform):
        if hasattr(platform, "get_byte_multiplier"):
            return platform.get_byte_multiplier(self)
        m = Module()
        a = delayed(m, self.a)
        weights = Signal.like(self.weights, reset_less=True)
        with m.If(self.load):
            m.d.sync += weights.eq(self.weights)
        for result, addend, weight in zip(self.sums, self.addends, weights):
            total = (addend + delayed(m, a * weight))[:16].as_signed()
            m.d.comb += result.eq(delayed(m, total) if self._registered else total)
        return m


class Ice40Primitives:
    """What a platform for the iCE40 UP5K answers: a mix-in for Amaranth platforms, and by itself enough to generate RTLIL for `synth_ice40`."""

    def get_single_port_ram(self, select, address, write, write_data, read_data) -> Instance:
        """SB_SPRAM256KA (Lattice FPGA-TN-02022): 16K words of two bytes."""
        return Instance(
            "SB_SPRAM256KA", i_CLOCK=ClockSignal(), i_CHIPSELECT=select, i_ADDRESS=address, i_DATAIN=write_data, o_DATAOUT=read_data,
            i_WREN=write.any(), i_MASKWREN=Cat(bit.replicate(2) for bit in write), i_STANDBY=Const(0), i_SLEEP=Const(0), i_POWEROFF=Const(1),
        )

    def get_byte_multiplier(self, multiplier: ByteMultiplier) -> Module:
        """SB_MAC16 with its input and 8×8 multiplier registers (Lattice FPGA-TN-02007); two adders of C and D behind them."""
        m = Module()
        zeros = {f"i_{pin}": Const(0) for pin in ("AHOLD", "CHOLD", "DHOLD", "IRSTTOP", "IRSTBOT", "ORSTTOP", "ORSTBOT", "OLOADTOP", "OLOADBOT", "ADDSUBTOP",
                                                  "ADDSUBBOT", "OHOLDTOP", "OHOLDBOT", "CI", "ACCUMCI", "SIGNEXTIN")}
        low, high = multiplier.addends
        sums, select = Signal(32), int(multiplier.registered)
        m.d.comb += multiplier.sums.eq(sums)
        m.submodules.instance = Instance(
            "SB_MAC16", p_MODE_8x8=1, p_A_SIGNED=1, p_B_SIGNED=1, p_A_REG=1, p_B_REG=1, p_TOP_8x8_MULT_REG=1, p_BOT_8x8_MULT_REG=1,
            p_TOPADDSUB_LOWERINPUT=1, p_TOPADDSUB_UPPERINPUT=1, p_TOPOUTPUT_SELECT=select,
            p_BOTADDSUB_LOWERINPUT=1, p_BOTADDSUB_UPPERINPUT=1, p_BOTOUTPUT_SELECT=select,
            **zeros, i_CLK=ClockSignal(), i_CE=Const(1), i_C=high, i_D=low, i_A=Cat(multiplier.a, multiplier.a), i_B=multiplier.weights,
            i_BHOLD=~multiplier.load, o_O=sums,
        )
        return m
