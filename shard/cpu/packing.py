"""How a weight lies in memory for the compiled products: in panels of outputs, as linear.c says.

Owns the forms and the memory that packed weights are in. Must not know what is multiplied when.
"""

import ctypes

import torch
from torch import Tensor

from shard.cpu.huge_pages import Arena


class Packing:
    """Of a library: its forms follow from the arithmetic of the processor that it was compiled for."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.lanes = int(library.lanes())
        # Outputs of a packed weight that lie together, and inputs that are multiplied at once.
        self.panel, self.together = 2 * self.lanes, int(library.together())
        # The same where weights are int8 and inputs become integers; 0: they stay what they are.
        self._integers_together = int(library.integers_together())
        self.multiplies_integers = self._integers_together > 0
        self._weights = Arena()
        if self.together == 1:
            self._unpack = library.unpack
            self._unpack.argtypes = [ctypes.c_void_p] * 2 + [ctypes.c_long] * 3

    def num_inputs(self, num_inputs: int, *, is_int8: bool) -> int:
        """So many as a packed weight has them."""
        return round_up(num_inputs, self._integers_together) if is_int8 and self.multiplies_integers else num_inputs

    def num_outputs(self, num_outputs: int) -> int:
        return round_up(num_outputs, self.panel)

    def pack(self, weight: Tensor) -> Tensor:
        """A weight [out, in] in bfloat16 or int8, outputs padded with zeros -> [panels, in, panel].

        What lies where in a panel follows from the arithmetic (linear.c). With integers inputs are padded, too.
        """
        num_inputs, is_int8 = weight.shape[1], weight.dtype == torch.int8
        missing = -len(weight) % self.panel
        padded = torch.nn.functional.pad(weight, (0, 0, 0, missing)) if missing else weight
        if is_int8 and self.multiplies_integers:
            return self._pack_for_integers(padded)
        panels = padded.view(-1, 2, self.lanes, num_inputs)
        if self.together == 1:
            panels = panels.permute((0, 3, 1, 2) if is_int8 else (0, 3, 2, 1))
            return self._weights.hold(panels.reshape(-1, num_inputs, self.panel))
        end = num_inputs // 2 * 2
        # [panels, pairs, vectors, lanes, 2]
        pairs = panels[..., :end].reshape(*panels.shape[:3], -1, 2).permute(0, 3, 1, 2, 4)
        single = panels[..., end:].movedim(-1, 1)
        parts = [part.reshape(len(panels), -1, self.panel) for part in (pairs, single)]
        return self._weights.hold(torch.cat(parts, dim=1))

    def _pack_for_integers(self, weight: Tensor) -> Tensor:
        num_inputs, together = weight.shape[1], self._integers_together
        padded = torch.nn.functional.pad(weight, (0, -num_inputs % together))
        # [panels, inputs / together, vectors, lanes, together]; the first bit turned is 128 more, without a sign.
        parts = padded.view(-1, 2, self.lanes, padded.shape[1] // together, together).permute(0, 3, 1, 2, 4) ^ -128
        return self._weights.hold(parts.reshape(-1, padded.shape[1], self.panel))

    def unpacked(self, weight: Tensor) -> Tensor:
        """A packed weight -> its transpose [padded in, padded outputs] in bfloat16; of int8 without its scales. Where
        floats are multiplied."""
        panels, num_inputs, _ = weight.shape
        out = torch.empty(num_inputs, panels * self.panel, dtype=torch.bfloat16)
        self._unpack(weight.data_ptr(), out.data_ptr(), num_inputs, panels, weight.itemsize)
        return out

    def gated(self, outputs: Tensor) -> Tensor:
        """A weight, bias or scales of [2 * width, …], the gate's first -> vectors of both by turns, as a gated product
        wants them packed; each padded with zeros to whole vectors."""
        missing = -(len(outputs) // 2) % self.lanes
        pairs = outputs.view(2, -1, *outputs.shape[1:])
        padded = torch.nn.functional.pad(pairs, (*[0, 0] * (outputs.ndim - 1), 0, missing))
        return padded.view(2, -1, self.lanes, *outputs.shape[1:]).transpose(0, 1).flatten(end_dim=2)

    def ungated(self, rows: Tensor) -> Tensor:
        """[N, outputs as `gated` has them] -> [N, 2 * padded width], the gate's first."""
        return rows.view(len(rows), -1, 2, self.lanes).transpose(1, 2).reshape(len(rows), -1)

    def pack_outputs(self, values: Tensor) -> Tensor:
        """A bias or scales [out] -> float32, as long as the padded outputs."""
        return torch.nn.functional.pad(values.float(), (0, -len(values) % self.panel))


def round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple
