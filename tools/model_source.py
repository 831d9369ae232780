"""A model as C source: artifact and state as constant arrays, for the flash of a board."""

from sparsyfed.edge_runtime import Artifact, State

BYTES_A_LINE = 16

HEADER = """\
/* A compiled model and its state, for flash. Made by sparsyfed export. */
#ifndef MODEL_H
#define MODEL_H

#include <stdint.h>

extern const uint8_t model_artifact[], model_state[];
extern const uint32_t model_artifact_bytes, model_state_bytes;

#endif
"""
"""model.h: the names that `devices/boards/model.h` has."""


def model_source(artifact: Artifact, state: State) -> str:
    """model.c: what sfd_plan and sfd_open take (sfd.h). Same model, same text."""
    return (
        f"/* Model {artifact.identity}, {state.nonzeros} weights stored. Made by sparsyfed export. */\n"
        '#include "model.h"\n'
        f"{_array('artifact', artifact.encode())}{_array('state', state.encode())}"
    )


def _array(name: str, data: bytes) -> str:
    lines = "\n".join(
        "    " + "".join(f"{byte}," for byte in data[at : at + BYTES_A_LINE])
        for at in range(0, len(data), BYTES_A_LINE)
    )
    return (
        f"\nconst uint32_t model_{name}_bytes = {len(data)}u;\n"
        f"const uint8_t model_{name}[{len(data)}] = {{\n{lines}\n}};\n"
    )
