"""Host side: from an nn.Module to a Program, to a device, to a result; the command line."""
