"""Errors that are the user's to solve: one sentence that names the layer, file or option, the reason and what to do."""

__all__ = ["CelosiaError", "CompileError", "NoRoomError", "UnsupportedError"]


class CelosiaError(ValueError):
    """A model, file or option that cannot be used; the command line prints the sentence and exits with `exit_code`."""

    exit_code = 2


class UnsupportedError(CelosiaError):
    """An operation the engine or the compiler cannot run; `node` is the one of the graph that is to blame, if it is one."""

    def __init__(self, sentence: str, node=None):
        super().__init__(sentence)
        self.node = node


class CompileError(CelosiaError):
    """A network that does not fit a configuration."""


class NoRoomError(CompileError):
    """A network whose maps and weights exceed a configuration's memory."""
