// A ULX3S around its chip, the module `board`: pins of the memory in one word, a monitor of their set-up and hold times, and models of the pads and the PLLs
// (Lattice FPGA-TN-02032 and FPGA-TN-02200, Yosys' cells_bb.v) for the settings that are used; any other ends the simulation.
//
// The test makes the PLLs' clocks, since a simulator of cycles cannot; the models check that they are those of the parameters.
`timescale 1ns/1ps

module top (
    input engine_clk, memory_clk, pin_clk, line_clk, locked, rx, output tx, output [7:0] leds,
    output sdram_clk, output [38:0] outputs, input [15:0] dq_i, input dq_i_valid, output step, advance, output reg [31:0] violations, edges, output memory_edge
);
    parameter real SETUP = 2.0, HOLD = 1.3; // ns: the data sheet's 1.5 and 0.8, and half a nanosecond between the pads
    wire clk_en, cs_n, ras_n, cas_n, we_n;
    wire [1:0] ba, dqm;
    wire [12:0] a;
    wire [15:0] dq;
    board board (
        .clk25_0__io(1'b0), .uart_0__rx__io(rx), .uart_0__tx__io(tx),
        .led_0__io(leds[0]), .led_1__io(leds[1]), .led_2__io(leds[2]), .led_3__io(leds[3]),
        .led_4__io(leds[4]), .led_5__io(leds[5]), .led_6__io(leds[6]), .led_7__io(leds[7]),
        .sdram_0__clk__io(sdram_clk), .sdram_0__clk_en__io(clk_en), .sdram_0__cs__io(cs_n), .sdram_0__ras__io(ras_n), .sdram_0__cas__io(cas_n),
        .sdram_0__we__io(we_n), .sdram_0__ba__io(ba), .sdram_0__a__io(a), .sdram_0__dqm__io(dqm), .sdram_0__dq__io(dq)
    );
    assign dq = dq_i_valid ? dq_i : 16'bz;
    wire dq_oe = ~board.memory_dq.\buf .buf0.T;
    // In the order of sdram_model.PINS.
    assign outputs = {dq_oe, dq, dqm, a, ba, ~we_n, ~cas_n, ~ras_n, ~cs_n, clk_en};
    assign step = board.memory_pll.step;
    assign advance = board.memory_pll.advance;

    // Edges of the memory's clock at which something may happen: a command, a word, and the clocks after it in which the memory answers. `edges` counts all.
    reg [4:0] awake;
    reg seen;
    wire command = ~cs_n & ~(ras_n & cas_n & we_n);
    initial {awake, seen, edges} = 0;
    always @(posedge sdram_clk) begin
        edges <= edges + 1;
        awake <= command ? 5'd16 : awake - (awake != 0);
    end
    always @* if (!sdram_clk) seen = locked & (command | dq_oe | awake != 0);
    assign memory_edge = sdram_clk & seen;

    wire [38:0] driven = dq_oe ? outputs : {1'b0, 16'b0, outputs[21:0]};
    realtime changed, edge_;
    initial violations = 0;
    always @(driven) begin
        changed = $realtime;
        if (locked && $realtime - edge_ < HOLD) violations <= violations + 1;
    end
    always @(posedge sdram_clk) begin
        edge_ = $realtime;
        if (locked && $realtime - changed < SETUP) violations <= violations + 1;
    end
endmodule

module EHXPLLL #(
    parameter CLKI_DIV = 1, CLKFB_DIV = 1, CLKOP_DIV = 8, CLKOS_DIV = 8, CLKOS2_DIV = 8, CLKOS3_DIV = 8,
    parameter CLKOP_CPHASE = 0, CLKOP_FPHASE = 0, CLKOS_CPHASE = 0, CLKOS_FPHASE = 0, CLKOS2_CPHASE = 0, CLKOS2_FPHASE = 0, CLKOS3_CPHASE = 0, CLKOS3_FPHASE = 0,
    parameter CLKOP_ENABLE = "ENABLED", CLKOS_ENABLE = "DISABLED", CLKOS2_ENABLE = "DISABLED", CLKOS3_ENABLE = "DISABLED",
    parameter FEEDBK_PATH = "CLKOP", PLLRST_ENA = "DISABLED", INTFB_WAKE = "DISABLED", STDBY_ENABLE = "DISABLED", DPHASE_SOURCE = "DISABLED",
    parameter OUTDIVIDER_MUXA = "DIVA", OUTDIVIDER_MUXB = "DIVB", OUTDIVIDER_MUXC = "DIVC", OUTDIVIDER_MUXD = "DIVD"
) (
    input CLKI, CLKFB, RST, STDBY, ENCLKOP, PLLWAKESYNC, PHASESEL1, PHASESEL0, PHASEDIR, PHASESTEP, PHASELOADREG, output CLKOP, CLKOS, CLKOS2, CLKOS3, LOCK
);
    localparam memory = CLKOS2_ENABLE == "ENABLED";
    localparam real unit = 40.0 * CLKI_DIV / (CLKFB_DIV * CLKOP_DIV); // ns: a period of the oscillator, of 25 MHz
    assign CLKOP = 0;
    assign LOCK = top.locked;
    assign CLKOS = memory ? top.pin_clk : top.engine_clk;
    assign CLKOS2 = memory ? top.memory_clk : 0;
    assign CLKOS3 = memory ? top.line_clk : 0;
    initial if (FEEDBK_PATH != "CLKOP" || DPHASE_SOURCE != "ENABLED" || CLKOP_ENABLE != "ENABLED" || CLKOS_ENABLE != "ENABLED" || CLKOS3_ENABLE != CLKOS2_ENABLE
        || unit < 1.249 || unit > 2.501 || PLLRST_ENA != "DISABLED" || INTFB_WAKE != "DISABLED" || STDBY_ENABLE != "DISABLED"
        || OUTDIVIDER_MUXA != "DIVA" || OUTDIVIDER_MUXB != "DIVB" || OUTDIVIDER_MUXC != "DIVC" || OUTDIVIDER_MUXD != "DIVD") $fatal(1, "EHXPLLL: not modelled");
    integer steps = 0;
    always @(negedge PHASESTEP) if (LOCK) begin
        if (PHASESEL1 || PHASESEL0 || PHASELOADREG) $fatal(1, "EHXPLLL: not modelled");
        steps <= PHASEDIR ? steps - 1 : steps + 1;
    end
    realtime last, last2, last3;
    real behind;
    always @(posedge CLKOS) begin
        if (last > 0 && steps == 0) check("CLKOS", $realtime - last, unit * CLKOS_DIV);
        if (memory && LOCK) begin
            behind = $realtime - last2 - unit * (CLKOS_CPHASE - CLKOS_DIV + 1 + (CLKOS_FPHASE + steps) / 8.0);
            behind = behind - unit * CLKOS_DIV * $floor(behind / (unit * CLKOS_DIV) + 0.5);
            if (behind > 0.02 || behind < -0.02) $fatal(1, "EHXPLLL: the phase of CLKOS is %f ns off", behind);
        end
        last = $realtime;
    end
    always @(posedge CLKOS2) begin
        if (last2 > 0) check("CLKOS2", $realtime - last2, unit * CLKOS2_DIV);
        last2 = $realtime;
    end
    always @(posedge CLKOS3) begin
        if (last3 > 0) check("CLKOS3", $realtime - last3, unit * CLKOS3_DIV);
        last3 = $realtime;
    end
    task check(input string name, input real period, input real expected);
        if (period < expected * 0.999 || period > expected * 1.001) $fatal(1, "EHXPLLL: %s has a period of %f ns, not %f", name, period, expected);
    endtask
endmodule

module ODDRX1F #(parameter GSR = "ENABLED") (input SCLK, RST, D0, D1, output Q);
    reg first, second;
    always @(posedge SCLK) {first, second} <= RST ? 2'b00 : {D0, D1};
    assign Q = SCLK ? first : second;
endmodule

module OFS1P3DX #(parameter GSR = "ENABLED") (input SCLK, SP, CD, D, output reg Q);
    always @(posedge SCLK) if (SP) Q <= D;
    always @(posedge SCLK) if (CD) $fatal(1, "OFS1P3DX: not modelled");
endmodule

module IFS1P3DX #(parameter GSR = "ENABLED") (input SCLK, SP, CD, D, output reg Q);
    always @(posedge SCLK) if (SP) Q <= D;
    always @(posedge SCLK) if (CD) $fatal(1, "IFS1P3DX: not modelled");
endmodule

module BB (inout B, input I, T, output O);
    assign B = T ? 1'bz : I;
    assign O = B;
endmodule

module OBZ (input I, T, output O);
    assign O = T ? 1'bz : I;
endmodule

module IB (input I, output O);
    assign O = I;
endmodule

module FD1S3AX #(parameter GSR = "ENABLED") (input CK, D, output reg Q);
    always @(posedge CK) Q <= D;
endmodule
