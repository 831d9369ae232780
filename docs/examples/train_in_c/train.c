/* Trains a model with the C core alone: no Python, and no memory but what this file asks for.
 *
 *     train model.sfd initial.sfs x.bin y.bin EXAMPLES EPOCHS BATCH KEEP update.sfs
 *
 * model.sfd and initial.sfs come from `sparsyfed export`. x.bin holds float32 examples, y.bin int32
 * labels, both without a header. Prints the mean loss of each epoch and writes the KEEP largest
 * weights as the update that a coordinator averages. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sfd.h"

#define LEARNING_RATE 0.05f
#define WEIGHT_DECAY 1e-3f

/* The bytes of a file, with one byte more so that an empty one is not NULL. */
static uint8_t *read_file(const char *path, size_t *bytes)
{
    FILE *file = fopen(path, "rb");
    uint8_t *data = NULL;
    long length = -1;

    if (file != NULL && fseek(file, 0, SEEK_END) == 0)
        length = ftell(file);
    if (length >= 0 && fseek(file, 0, SEEK_SET) == 0)
        data = malloc((size_t)length + 1u);
    if (data == NULL || fread(data, 1u, (size_t)length, file) != (size_t)length) {
        fprintf(stderr, "%s: %s\n", path, strerror(errno));
        exit(1);
    }
    fclose(file);
    *bytes = (size_t)length;
    return data;
}

/* Memory as the core wants it; it lives until the program ends. */
static void *aligned(uint64_t bytes)
{
    uint8_t *memory =
        bytes < SIZE_MAX - SFD_ALIGNMENT ? malloc((size_t)bytes + SFD_ALIGNMENT) : NULL;

    if (memory == NULL) {
        fprintf(stderr, "no %llu bytes of memory\n", (unsigned long long)bytes);
        exit(1);
    }
    return memory + (SFD_ALIGNMENT - (uintptr_t)memory % SFD_ALIGNMENT);
}

static void require(int error, const char *what)
{
    if (error != SFD_OK) {
        fprintf(stderr, "%s: %s\n", what, sfd_error_string(error));
        exit(1);
    }
}

/* A session in memory of exactly the planned size. */
static struct sfd_session *open_session(const char *model, const char *initial, uint32_t batch)
{
    size_t artifact_bytes, state_bytes;
    uint8_t *artifact = read_file(model, &artifact_bytes);
    uint8_t *state = read_file(initial, &state_bytes);
    struct sfd_session *session = NULL;
    struct sfd_plan plan;
    uint64_t workspace_bytes;
    void *workspace, *arena;

    require(sfd_workspace_bytes(artifact, artifact_bytes, &workspace_bytes, NULL), model);
    workspace = aligned(workspace_bytes);
    require(sfd_plan(artifact, artifact_bytes, state, state_bytes, batch, NULL, workspace,
                     (size_t)workspace_bytes, &plan, NULL),
            "plan");
    arena = aligned(plan.arena_bytes);
    require(
        sfd_open(workspace, state, state_bytes, arena, (size_t)plan.arena_bytes, &session, NULL),
        "open");
    printf("arena: %llu bytes\n", (unsigned long long)plan.arena_bytes);
    free(artifact); /* the session has what it needs */
    free(state);
    return session;
}

/* One pass over the examples in their order; returns the mean loss. */
static double train_epoch(struct sfd_session *session, const float *x, const int32_t *y,
                          uint32_t examples, uint32_t batch)
{
    const size_t example_size = sfd_input_size(session);
    double sum = 0.0;
    uint32_t start, count;
    float loss;

    for (start = 0u; start < examples; start += count) {
        count = examples - start < batch ? examples - start : batch;
        require(sfd_step(session, x + start * example_size, y + start, SFD_TARGET_INT32, count,
                         LEARNING_RATE, WEIGHT_DECAY, &loss),
                "step");
        sum += (double)loss * count;
    }
    return sum / examples;
}

static void write_update(struct sfd_session *session, uint32_t keep, const char *path)
{
    size_t bytes;
    uint8_t *update;
    FILE *file = fopen(path, "wb");

    require(sfd_update_encode(session, &keep, 1u, 1u, NULL, 0u, &bytes), "update");
    update = aligned(bytes);
    require(sfd_update_encode(session, &keep, 1u, 1u, update, bytes, &bytes), "update");
    if (file == NULL || fwrite(update, 1u, bytes, file) != bytes || fclose(file) != 0) {
        fprintf(stderr, "%s: %s\n", path, strerror(errno));
        exit(1);
    }
    printf("update: %llu bytes\n", (unsigned long long)bytes);
}

static uint32_t number(const char *text)
{
    return (uint32_t)strtoul(text, NULL, 10);
}

int main(int count, char **argument)
{
    struct sfd_session *session;
    size_t x_bytes, y_bytes;
    uint32_t examples, epochs, batch, epoch;
    float *x;
    int32_t *y;

    if (count != 10) {
        fprintf(stderr, "usage: train MODEL STATE X Y EXAMPLES EPOCHS BATCH KEEP UPDATE\n");
        return 2;
    }
    examples = number(argument[5]);
    epochs = number(argument[6]);
    batch = number(argument[7]);
    session = open_session(argument[1], argument[2], batch);
    x = (float *)(void *)read_file(argument[3], &x_bytes);
    y = (int32_t *)(void *)read_file(argument[4], &y_bytes);
    if (examples == 0u || y_bytes != (uint64_t)examples * sizeof *y ||
        x_bytes != (uint64_t)examples * sfd_input_size(session) * sizeof *x) {
        fprintf(stderr, "%s and %s do not hold %u examples of %u values and a label\n", argument[3],
                argument[4], (unsigned)examples, (unsigned)sfd_input_size(session));
        return 1;
    }
    for (epoch = 1u; epoch <= epochs; ++epoch)
        printf("epoch %u: loss %.6f\n", (unsigned)epoch,
               train_epoch(session, x, y, examples, batch));
    write_update(session, number(argument[8]), argument[9]);
    sfd_close(session);
    return 0;
}
