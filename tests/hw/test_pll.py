"""Dividers and phases of the PLLs, by what they make of the input."""

import pytest

from celosia.hw.pll import Pll, PllClock, clock_below, divider_parameters


def made(parameters, output="CLKOS"):
    """MHz and degrees of an output, of 25 MHz."""
    oscillator = 25 / parameters["CLKI_DIV"] * parameters["CLKFB_DIV"] * parameters["CLKOP_DIV"]
    assert 400 <= oscillator <= 800 and 25 / parameters["CLKI_DIV"] >= 10 and oscillator / parameters["CLKOP_DIV"] <= 400
    divider = parameters[f"{output}_DIV"]
    steps = 8 * (parameters[f"{output}_CPHASE"] - (divider - 1)) + parameters[f"{output}_FPHASE"]
    return oscillator / divider, 360 * steps / (8 * divider)


@pytest.mark.parametrize("phase", [0, 90, 180, 7.5, 352.5])
def test_clocks_of_the_board(phase):
    pll = Pll(25, PllClock(400 / 3, phase), PllClock(400 / 3), PllClock(50))
    outputs = [made(pll._parameters, output) for output in ("CLKOS", "CLKOS2", "CLKOS3")]
    assert outputs == [pytest.approx(pair) for pair in ((400 / 3, phase), (400 / 3, 0), (50, 0))]
    assert pll.phase_steps == 48


@pytest.mark.parametrize("limit", [3.2, 50, 99.9, 100, 110, 112.6, 114.4, 140, 399, 500])
def test_clock_below(limit):
    clock = clock_below(25, limit)
    assert made(divider_parameters(25, clock)) == pytest.approx((clock, 0)) and limit / 1.02 < clock <= limit or clock == 400


@pytest.mark.parametrize("clocks", [[133], [400 / 3, 110], [900], [3]])
def test_clocks_that_cannot_be_made(clocks):
    with pytest.raises(ValueError, match="clocks must have a common multiple that a PLL makes of 25 MHz, not"):
        Pll(25, *map(PllClock, clocks))


def test_limits():
    with pytest.raises(ValueError, match="limit_mhz must be at least 3.125, not 3"):
        clock_below(25, 3)
    for clocks in ([], [PllClock(50)] * 4):
        with pytest.raises(ValueError, match=f"clocks must be one to 3, not {len(clocks)}"):
            Pll(25, *clocks)
