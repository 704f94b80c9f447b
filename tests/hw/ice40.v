// A model of what Ice40Primitives instantiates as memory, after Lattice FPGA-TN-02022 and Yosys' cells_sim.v, for the settings it uses; any other gives x.

module SB_SPRAM256KA (
    input [13:0] ADDRESS, input [15:0] DATAIN, input [3:0] MASKWREN, input WREN, CHIPSELECT, CLOCK, STANDBY, SLEEP, POWEROFF, output reg [15:0] DATAOUT
);
    reg [15:0] words [0:16383];
    wire [15:0] mask = {{4{MASKWREN[3]}}, {4{MASKWREN[2]}}, {4{MASKWREN[1]}}, {4{MASKWREN[0]}}};
    always @(posedge CLOCK) if (CHIPSELECT) begin
        DATAOUT <= WREN || STANDBY || SLEEP || !POWEROFF ? 16'hxxxx : words[ADDRESS];
        if (WREN) words[ADDRESS] <= words[ADDRESS] & ~mask | DATAIN & mask;
    end
endmodule
