/* Firmware without a model: it comes over the line. */
#include "model.h"

const uint8_t model_artifact[1] = {0u}, model_state[1] = {0u};
const uint32_t model_artifact_bytes = 0u, model_state_bytes = 0u;
