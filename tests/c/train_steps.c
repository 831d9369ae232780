/* Trains a model on numbers from a fixed generator and prints the checksum of its update: the same
 * on every machine. Usage: train_steps ARTIFACT STATE INPUT_SIZE OUTPUTS BATCH STEPS KEEP TARGET
 * THREADS, with TARGET 1 for labels and 3 for values (enum sfd_target). */
#include <stdio.h>
#include <stdlib.h>

#include "sfd.h"
#include "sfd_parse.h"

static uint8_t *read_file(const char *path, size_t *size)
{
    FILE *file = fopen(path, "rb");
    uint8_t *data;
    long length;

    if (file == NULL || fseek(file, 0, SEEK_END) != 0 || (length = ftell(file)) < 0)
        return NULL;
    rewind(file);
    data = malloc((size_t)length + 1u);
    *size = data == NULL ? 0u : fread(data, 1u, (size_t)length, file);
    fclose(file);
    return data;
}

static void *aligned(size_t bytes)
{
    uint8_t *memory = malloc(bytes + SFD_ALIGNMENT);

    return memory == NULL ? NULL : memory + (SFD_ALIGNMENT - (uintptr_t)memory % SFD_ALIGNMENT);
}

static uint32_t next_random(uint32_t *seed)
{
    *seed ^= *seed << 13;
    *seed ^= *seed >> 17;
    *seed ^= *seed << 5;
    return *seed;
}

int main(int count, char **argument)
{
    size_t artifact_bytes, state_bytes, update_bytes;
    uint8_t *artifact, *state, *update;
    struct sfd_session *session = NULL;
    struct sfd_options options = {SFD_KERNELS_AUTOMATIC, 1u};
    struct sfd_plan plan;
    uint64_t workspace_bytes;
    uint32_t size, outputs, batch, steps, keep, seed = 1u, step, i;
    int error;
    void *workspace, *arena;
    float *x, loss = 0.0f;
    int32_t *label;
    enum sfd_target target;

    if (count != 10)
        return 2;
    artifact = read_file(argument[1], &artifact_bytes);
    state = read_file(argument[2], &state_bytes);
    size = (uint32_t)atoi(argument[3]);
    outputs = (uint32_t)atoi(argument[4]);
    batch = (uint32_t)atoi(argument[5]);
    steps = (uint32_t)atoi(argument[6]);
    keep = (uint32_t)atoi(argument[7]);
    target = (enum sfd_target)atoi(argument[8]);
    options.threads = (uint32_t)atoi(argument[9]);
    if (sfd_workspace_bytes(artifact, artifact_bytes, &workspace_bytes, NULL) != SFD_OK)
        return 3;
    workspace = aligned((size_t)workspace_bytes);
    if (sfd_plan(artifact, artifact_bytes, state, state_bytes, batch, &options, workspace,
                 (size_t)workspace_bytes, &plan, NULL) != SFD_OK)
        return 4;
    arena = aligned((size_t)plan.arena_bytes);
    if (sfd_open(workspace, state, state_bytes, arena, (size_t)plan.arena_bytes, &session, NULL) !=
        SFD_OK)
        return 5;
    x = malloc((size_t)batch * (size + outputs) * sizeof *x); /* inputs, then wanted outputs */
    label = malloc((size_t)batch * sizeof *label);
    for (step = 0u; step < steps; ++step) {
        for (i = 0u; i < batch * (size + outputs); ++i)
            x[i] = (float)(next_random(&seed) >> 8) / 8388608.0f - 1.0f;
        for (i = 0u; i < batch; ++i)
            label[i] = (int32_t)(next_random(&seed) % outputs);
        error = sfd_step(session, x,
                         target == SFD_TARGET_INT32 ? (void *)label : (void *)(x + batch * size),
                         target, batch, 0.05f, 1e-3f, &loss);
        if (error != SFD_OK) {
            fprintf(stderr, "step %u: %s\n", (unsigned)step, sfd_error_string(error));
            return 6;
        }
    }
    if (sfd_update_encode(session, &keep, 1u, 1u, NULL, 0u, &update_bytes) != SFD_OK)
        return 7;
    update = malloc(update_bytes);
    if (sfd_update_encode(session, &keep, 1u, 1u, update, update_bytes, &update_bytes) != SFD_OK)
        return 8;
    sfd_close(session);
    printf("%08lx %lu\n", (unsigned long)sfd_crc32(0u, update, update_bytes),
           (unsigned long)update_bytes);
    return 0;
}
