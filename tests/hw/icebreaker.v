// An iCEBreaker around its chip, the module `board`: the serial line, and models of the PLL and the pads (Lattice FPGA-TN-02052, Yosys' cells_sim.v) for the settings
// that are used; any other ends the simulation. `clk` is the PLL's clock, which locks when `rst` ends.

module top (input clk, rst, rx, output tx);
    wire rx_pin = rx;
    board board (.clk12_0__io(clk), .uart_0__rx__io(rx_pin), .uart_0__tx__io(tx));
endmodule

module SB_PLL40_PAD #(
    parameter FEEDBACK_PATH = "", DIVR = 0, DIVF = 0, DIVQ = 0, FILTER_RANGE = 0
) (input PACKAGEPIN, RESETB, BYPASS, output PLLOUTGLOBAL, LOCK);
    initial if (FEEDBACK_PATH != "SIMPLE" || DIVR != 0 || DIVF != 63 || DIVQ != 5 || FILTER_RANGE != 1) $fatal(1, "SB_PLL40_PAD: not modelled");
    always @* if (!RESETB || BYPASS) $fatal(1, "SB_PLL40_PAD: not modelled");
    assign PLLOUTGLOBAL = PACKAGEPIN;
    assign LOCK = !top.rst;
endmodule

module SB_IO #(
    parameter PIN_TYPE = 0, PULLUP = 0, IO_STANDARD = ""
) (inout PACKAGE_PIN, input CLOCK_ENABLE, OUTPUT_ENABLE, D_OUT_0, output D_IN_0);
    generate
        case (PIN_TYPE)
            6'b000001: assign D_IN_0 = PACKAGE_PIN;
            6'b101001: assign PACKAGE_PIN = OUTPUT_ENABLE ? D_OUT_0 : 1'bz;
            default: initial $fatal(1, "SB_IO: not modelled");
        endcase
    endgenerate
endmodule

module SB_LUT4 #(parameter [15:0] LUT_INIT = 0) (input I0, I1, I2, I3, output O); // as Yosys', in one shift: that is faster
    assign O = 1'(LUT_INIT >> {I3, I2, I1, I0});
endmodule
