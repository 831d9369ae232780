/* The model that is part of the firmware: no_model.c, or a file of `sparsyfed export --c-array`. */
#ifndef MODEL_H
#define MODEL_H

#include <stdint.h>

extern const uint8_t model_artifact[], model_state[];
extern const uint32_t model_artifact_bytes, model_state_bytes;

#endif
