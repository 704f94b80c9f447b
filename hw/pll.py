"""The ECP5's PLL: up to three clocks out of one (Lattice FPGA-TN-02200)."""

from collections.abc import Iterator
from dataclasses import dataclass

from amaranth.hdl import Const, Instance, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

__all__ = ["Pll", "PllClock", "clock_below", "divider_parameters"]

#: MHz: the oscillator, the phase detector at least, an output at most.
_OSCILLATOR, _DETECTOR, _OUTPUT = (400, 800), 10, 400
_DIVIDERS = range(1, 129)
#: Steps of an output's phase in a period of the oscillator.
_STEPS = 8
_OUTPUTS = ("CLKOS", "CLKOS2", "CLKOS3")


@dataclass(frozen=True)
class PllClock:
    """An output: MHz, and the degrees by which it is behind one of the same frequency without."""

    mhz: float
    phase: float = 0


def _oscillators(input_mhz) -> "Iterator[tuple[int, int, int, float]]":
    """Dividers of the input, of the feedback and of the output it comes from, and MHz; the fastest phase detector first, then the fastest oscillator."""
    for divider in range(1, int(input_mhz / _DETECTOR) + 1):
        detector = input_mhz / divider
        for multiple in range(int(_OSCILLATOR[1] / detector + 1e-6), 0, -1):
            if multiple * detector >= _OSCILLATOR[0] - 1e-6:
                for output in _DIVIDERS:
                    if multiple % output == 0 and multiple // output in _DIVIDERS and multiple * detector / output <= _OUTPUT:
                        yield divider, multiple // output, output, multiple * detector
                        break


def _settings(input_mhz, clocks):
    """Parameters of the instance."""
    def fits(oscillator):
        ratios = [oscillator / clock.mhz for clock in clocks]
        return all(round(ratio) in _DIVIDERS and abs(ratio - round(ratio)) < 1e-6 for ratio in ratios)

    *dividers, oscillator = next((settings for settings in _oscillators(input_mhz) if fits(settings[-1])), [None])
    if oscillator is None:
        raise ValueError(f"clocks must have a common multiple that a PLL makes of {input_mhz:g} MHz, not {', '.join(f'{clock.mhz:g}' for clock in clocks)} MHz")
    parameters = dict(zip(("CLKI_DIV", "CLKFB_DIV"), dividers)) | {"FEEDBK_PATH": "CLKOP"}
    for name, divider, phase in [("CLKOP", dividers[2], 0), *((name, round(oscillator / clock.mhz), clock.phase) for name, clock in zip(_OUTPUTS, clocks))]:
        # The phase of an output is where its divider begins to count.
        steps = round(phase / 360 * divider * _STEPS) % (divider * _STEPS)
        parameters |= {f"{name}_ENABLE": "ENABLED", f"{name}_DIV": divider, f"{name}_CPHASE": divider - 1 + steps // _STEPS, f"{name}_FPHASE": steps % _STEPS}
    return parameters


def divider_parameters(input_mhz: float, mhz: float) -> "dict[str, int]":
    """Those parameters of the instance of a :class:`Pll` with a single clock that depend on its frequency."""
    return {name: value for name, value in _settings(input_mhz, [PllClock(mhz)]).items() if isinstance(value, int)}


def clock_below(input_mhz: float, limit_mhz: float) -> float:
    """The fastest clock up to a limit that can be made, in MHz. Raises ValueError if there is none."""
    clocks = {oscillator / divider for *_, oscillator in _oscillators(input_mhz) for divider in _DIVIDERS}
    if not (possible := [clock for clock in clocks if clock <= min(limit_mhz, _OUTPUT)]):
        raise ValueError(f"limit_mhz must be at least {min(clocks):g}, not {limit_mhz:g}")
    return max(possible)


class Pll(wiring.Component):
    """`outputs[k]` is clock k of `clocks`, while `locked`. A falling edge of `step` moves the first clock's phase an eighth of a period of the oscillator, to be later
    or, with `advance`, earlier. Raises ValueError for clocks that cannot be made together.

    There is no twin: whoever simulates it brings a model of EHXPLLL.
    """

    def __init__(self, input_mhz: float, *clocks: PllClock):
        if not 1 <= len(clocks) <= len(_OUTPUTS):
            raise ValueError(f"clocks must be one to {len(_OUTPUTS)}, not {len(clocks)}")
        self._parameters = _settings(input_mhz, clocks)
        self._frequencies = {"FREQUENCY_PIN_CLKI": input_mhz} | {f"FREQUENCY_PIN_{name}": clock.mhz for name, clock in zip(_OUTPUTS, clocks)}
        super().__init__({"input": In(1), "outputs": Out(1).array(len(clocks)), "locked": Out(1), "step": In(1), "advance": In(1)})

    @property
    def phase_steps(self) -> int:
        """Steps of a period of the first clock."""
        return self._parameters[f"{_OUTPUTS[0]}_DIV"] * _STEPS

    def elaborate(self, platform):
        m = Module()
        feedback = Signal()
        m.submodules.instance = Instance(
            "EHXPLLL", **{f"p_{name}": value for name, value in self._parameters.items()},
            p_PLLRST_ENA="DISABLED", p_INTFB_WAKE="DISABLED", p_STDBY_ENABLE="DISABLED", p_DPHASE_SOURCE="ENABLED",
            p_OUTDIVIDER_MUXA="DIVA", p_OUTDIVIDER_MUXB="DIVB", p_OUTDIVIDER_MUXC="DIVC", p_OUTDIVIDER_MUXD="DIVD",
            **{f"a_{name}": f"{mhz:g}" for name, mhz in self._frequencies.items()}, a_ICP_CURRENT="12", a_LPF_RESISTOR="8",
            i_CLKI=self.input, i_CLKFB=feedback, i_RST=Const(0), i_STDBY=Const(0), i_ENCLKOP=Const(0), i_PLLWAKESYNC=Const(0),
            i_PHASESEL1=Const(0), i_PHASESEL0=Const(0), i_PHASEDIR=self.advance, i_PHASESTEP=self.step, i_PHASELOADREG=Const(0),
            o_CLKOP=feedback, **{f"o_{name}": output for name, output in zip(_OUTPUTS, self.outputs)}, o_LOCK=self.locked,
        )
        return m
