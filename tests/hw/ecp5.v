// Models of what EcpPrimitives instantiates, after Lattice FPGA-TN-02205 (DSP), FPGA-TN-02204 (memory) and Yosys' cells_ff.vh, for the settings it uses;
// any other ends the simulation.

module TRELLIS_FF #(parameter GSR = "ENABLED", CEMUX = "1", CLKMUX = "CLK", LSRMUX = "LSR", SRMODE = "LSR_OVER_CE", REGSET = "RESET") (
    input CLK, LSR, DI, output reg Q
);
    initial Q = 0;
    always @(posedge CLK) Q <= LSR ? 0 : DI;
    initial if (GSR != "AUTO" || CEMUX != "1" || CLKMUX != "CLK" || LSRMUX != "LSR" || REGSET != "RESET") $fatal(1, "TRELLIS_FF: not modelled");
endmodule

module MULT18X18D #(
    parameter REG_INPUTA_CLK = "NONE", REG_INPUTA_CE = "CE0", REG_INPUTA_RST = "RST0",
    parameter REG_INPUTB_CLK = "NONE", REG_INPUTB_CE = "CE0", REG_INPUTB_RST = "RST0",
    parameter REG_PIPELINE_CLK = "NONE", REG_PIPELINE_CE = "CE0", REG_PIPELINE_RST = "RST0",
    parameter REG_OUTPUT_CLK = "NONE", REG_OUTPUT_CE = "CE0", REG_OUTPUT_RST = "RST0",
    parameter CLK0_DIV = "ENABLED", GSR = "ENABLED", SOURCEB_MODE = "B_SHIFT", RESETMODE = "SYNC", MULT_BYPASS = "DISABLED"
) (
    input A0, A1, A2, A3, A4, A5, A6, A7, A8, A9, A10, A11, A12, A13, A14, A15, A16, A17,
    input B0, B1, B2, B3, B4, B5, B6, B7, B8, B9, B10, B11, B12, B13, B14, B15, B16, B17,
    input SIGNEDA, SIGNEDB, SOURCEA, SOURCEB, CLK0, CE0, RST0,
    output P0, P1, P2, P3, P4, P5, P6, P7, P8, P9, P10, P11, P12, P13, P14, P15, P16, P17,
    output P18, P19, P20, P21, P22, P23, P24, P25, P26, P27, P28, P29, P30, P31, P32, P33, P34, P35
);
    wire [17:0] a_pins = {A17, A16, A15, A14, A13, A12, A11, A10, A9, A8, A7, A6, A5, A4, A3, A2, A1, A0};
    wire [17:0] b_pins = {B17, B16, B15, B14, B13, B12, B11, B10, B9, B8, B7, B6, B5, B4, B3, B2, B1, B0};
    reg [17:0] a_register, b_register;
    reg signed [37:0] pipeline, result;
    wire [17:0] a = REG_INPUTA_CLK == "CLK0" ? a_register : a_pins;
    wire [17:0] b = REG_INPUTB_CLK == "CLK0" ? b_register : b_pins;
    wire signed [37:0] product = $signed({SIGNEDA & a[17], a}) * $signed({SIGNEDB & b[17], b});
    wire signed [37:0] second = REG_PIPELINE_CLK == "CLK0" ? pipeline : product;
    wire signed [37:0] third = REG_OUTPUT_CLK == "CLK0" ? result : second;
    always @(posedge CLK0) if (CE0) begin
        a_register <= RST0 ? 0 : a_pins;
        b_register <= RST0 ? 0 : b_pins;
        pipeline <= RST0 ? 0 : product;
        result <= RST0 ? 0 : second;
    end
    assign {P35, P34, P33, P32, P31, P30, P29, P28, P27, P26, P25, P24, P23, P22, P21, P20, P19, P18, P17, P16, P15, P14, P13, P12, P11, P10, P9, P8, P7, P6, P5,
            P4, P3, P2, P1, P0} = third[35:0];
    initial if (CLK0_DIV != "ENABLED" || GSR != "DISABLED" || MULT_BYPASS != "DISABLED" || RESETMODE != "SYNC") $fatal(1, "MULT18X18D: not modelled");
    always @(posedge CLK0) if (SOURCEA || SOURCEB) $fatal(1, "MULT18X18D: shifted operands are not modelled");
endmodule

module DP16KD #(
    parameter DATA_WIDTH_A = 18, DATA_WIDTH_B = 18, REGMODE_A = "NOREG", REGMODE_B = "NOREG", RESETMODE = "SYNC", ASYNC_RESET_RELEASE = "SYNC",
    parameter CSDECODE_A = "0b000", CSDECODE_B = "0b000", WRITEMODE_A = "NORMAL", WRITEMODE_B = "NORMAL", CLKAMUX = "CLKA", CLKBMUX = "CLKB", GSR = "ENABLED"
) (
    input DIA17, DIA16, DIA15, DIA14, DIA13, DIA12, DIA11, DIA10, DIA9, DIA8, DIA7, DIA6, DIA5, DIA4, DIA3, DIA2, DIA1, DIA0,
    input ADA13, ADA12, ADA11, ADA10, ADA9, ADA8, ADA7, ADA6, ADA5, ADA4, ADA3, ADA2, ADA1, ADA0,
    input CEA, OCEA, CLKA, WEA, RSTA, CSA2, CSA1, CSA0,
    output DOA17, DOA16, DOA15, DOA14, DOA13, DOA12, DOA11, DOA10, DOA9, DOA8, DOA7, DOA6, DOA5, DOA4, DOA3, DOA2, DOA1, DOA0,
    input DIB17, DIB16, DIB15, DIB14, DIB13, DIB12, DIB11, DIB10, DIB9, DIB8, DIB7, DIB6, DIB5, DIB4, DIB3, DIB2, DIB1, DIB0,
    input ADB13, ADB12, ADB11, ADB10, ADB9, ADB8, ADB7, ADB6, ADB5, ADB4, ADB3, ADB2, ADB1, ADB0,
    input CEB, OCEB, CLKB, WEB, RSTB, CSB2, CSB1, CSB0,
    output DOB17, DOB16, DOB15, DOB14, DOB13, DOB12, DOB11, DOB10, DOB9, DOB8, DOB7, DOB6, DOB5, DOB4, DOB3, DOB2, DOB1, DOB0
);
    localparam WIDTH = DATA_WIDTH_A;
    localparam UNUSED = WIDTH == 36 ? 5 : WIDTH == 18 ? 4 : WIDTH == 9 ? 3 : WIDTH == 4 ? 2 : WIDTH == 2 ? 1 : 0;
    // Bytes of a word that can be written one by one; their enables take the place of unused address bits.
    localparam BYTES = WIDTH == 36 ? 4 : WIDTH == 18 ? 2 : 1;
    localparam BITS = WIDTH / BYTES;
    wire [35:0] in = {DIB17, DIB16, DIB15, DIB14, DIB13, DIB12, DIB11, DIB10, DIB9, DIB8, DIB7, DIB6, DIB5, DIB4, DIB3, DIB2, DIB1, DIB0,
                      DIA17, DIA16, DIA15, DIA14, DIA13, DIA12, DIA11, DIA10, DIA9, DIA8, DIA7, DIA6, DIA5, DIA4, DIA3, DIA2, DIA1, DIA0};
    wire [13:0] write_pins = {ADA13, ADA12, ADA11, ADA10, ADA9, ADA8, ADA7, ADA6, ADA5, ADA4, ADA3, ADA2, ADA1, ADA0};
    wire [13:0] read_pins = {ADB13, ADB12, ADB11, ADB10, ADB9, ADB8, ADB7, ADB6, ADB5, ADB4, ADB3, ADB2, ADB1, ADB0};
    wire [3:0] enables = BYTES == 1 ? 4'b1111 : write_pins[3:0];
    wire [13:0] write_address = write_pins >> UNUSED, read_address = read_pins >> UNUSED;
    reg [WIDTH-1:0] memory [0:(1 << 14 - UNUSED)-1];
    reg [35:0] latch, register;
    integer k;
    always @(posedge CLKA) if (CEA && WEA && {CSA2, CSA1, CSA0} == 0)
        for (k = 0; k < BYTES; k = k + 1)
            if (enables[k]) memory[write_address][k*BITS +: BITS] <= in[k*BITS +: BITS];
    always @(posedge CLKB) if (CEB && {CSB2, CSB1, CSB0} == 0) begin
        latch <= memory[read_address];
        if (OCEB) register <= latch;
    end
    // In 512x36 the low half of a word leaves by port A.
    wire [35:0] out = REGMODE_B == "OUTREG" ? register : latch;
    wire [17:0] out_b = WIDTH == 36 ? out[35:18] : out[17:0];
    assign {DOB17, DOB16, DOB15, DOB14, DOB13, DOB12, DOB11, DOB10, DOB9, DOB8, DOB7, DOB6, DOB5, DOB4, DOB3, DOB2, DOB1, DOB0} = out_b;
    assign {DOA17, DOA16, DOA15, DOA14, DOA13, DOA12, DOA11, DOA10, DOA9, DOA8, DOA7, DOA6, DOA5, DOA4, DOA3, DOA2, DOA1, DOA0} = WIDTH == 36 ? out[17:0] : 18'bx;
    initial if (DATA_WIDTH_A != DATA_WIDTH_B || REGMODE_A != REGMODE_B || RESETMODE != "SYNC" || CSDECODE_A != "0b000" || CSDECODE_B != "0b000"
                || CLKAMUX != "CLKA" || CLKBMUX != "CLKB" || WRITEMODE_A != "NORMAL" || WRITEMODE_B != "NORMAL" || GSR != "DISABLED") $fatal(1, "DP16KD: not modelled");
    always @(posedge CLKB) if (WEB || RSTA || RSTB || (WIDTH == 36 && !OCEA)) $fatal(1, "DP16KD: not modelled");
endmodule
