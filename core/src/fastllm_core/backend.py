"""How forwards are run: a back end below all roles, chosen by `forward`, that changes speed and no result.

eager     as transformers does, kernel by kernel
compiled  programs for processors, compiled ahead of time (`compiled.py`); what has none is compiled when first needed
graphs    captured CUDA or HIP graphs of transformers' own kernels (`graphs.py`)
fused     the same, with kernels of our own where a model is of the kind that they compute (`fused.py`)
auto      on a GPU fused, else programs that are there already, else eager; never waits for a compiler
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from .errors import ConfigError

if TYPE_CHECKING:
    from .config import Config
    from .device import Device
    from .network import Network
    from .port import Runner


class Backend(Protocol):
    """Makes the runner of each network of a pipeline, once."""

    def runner(self, network: Network) -> Runner:
        """How this network's forwards are run from now on."""
        ...

    @property
    def summary(self) -> str:
        """What runs how, in a few words for a report: "compiled", "eager (nothing is compiled)"."""
        ...


class Eager:
    """Everything as transformers runs it."""

    summary: Final = "eager"

    def runner(self, network: Network) -> Runner:
        """The network's own way."""
        from .port import EagerRunner

        return EagerRunner(network)


def make_backend(config: Config, device: Device) -> Backend:
    """The back end that a configuration asks for on a device. Raises ConfigError if it cannot be there."""
    on_gpu = device.device.type == "cuda"
    if config.forward in (("compiled",) if on_gpu else ("graphs", "fused")):
        fitting, needs = ("fused", "a processor") if on_gpu else ("compiled", "a GPU")
        raise ConfigError(
            f'forward: "{config.forward}" needs {needs}, and the device is {device.name}; choose "{fitting}" or "auto"'
        )
    if config.forward == "eager":
        return Eager()
    if on_gpu:
        from .graphs import Graphs

        return Graphs(fuses=config.forward != "graphs", asked=config.forward == "fused")
    from .compiled import Compiled
    from .programs import ProgramFolder

    folder = ProgramFolder(limit_bytes=int(config.programs.limit_gib * 2**30))
    return Compiled(folder, compiles=config.forward == "compiled", draft_length=config.draft.length)
