/* Mutates an artifact, a state and an update, and runs every entry point of the core on the
 * results.
 *
 *     fuzz_mutations ARTIFACT STATE UPDATE SEED COUNT
 *
 * makes COUNT mutations of each file. The same arguments make the same mutations. Each mutated
 * input lies in a heap block of exactly its size, so that AddressSanitizer sees any access past its
 * end. What the core accepts is planned and, where it is small, trained, evaluated and encoded, in
 * an arena of exactly the planned size. The program prints how many inputs ended in which code and
 * exits with 1 when a promise of sfd.h is broken. */
#include <stdio.h>
#include <stdlib.h>

#include "mutate.h"

#define MAX_FILE_BYTES (1u << 24)
#define MAX_ARENA_BYTES (UINT64_C(64) << 20)
#define MAX_MULTIPLY_ADDS UINT64_C(4000000)
#define CODES 19u

/* The promise that the condition states is broken: say which, and stop. */
#define PROMISE(condition)                                                          \
    do {                                                                            \
        if (!(condition)) {                                                         \
            fprintf(stderr, "%s:%d: broken: %s\n", __FILE__, __LINE__, #condition); \
            exit(1);                                                                \
        }                                                                           \
    } while (0)

struct tally {
    uint64_t code[CODES]; /* by -code */
    uint64_t trained, diverged;
};

static struct bytes read_file(const char *path)
{
    struct bytes file = {allocate(MAX_FILE_BYTES), 0};
    FILE *stream = fopen(path, "rb");

    if (stream == NULL) {
        perror(path);
        exit(2);
    }
    file.size = fread(file.data, 1, MAX_FILE_BYTES, stream);
    if (ferror(stream) != 0 || file.size == MAX_FILE_BYTES) {
        fprintf(stderr, "%s: not read whole\n", path);
        exit(2);
    }
    fclose(stream);
    return file;
}

/* A refusal of a file points into it. */
static void check_problem(int code, const struct sfd_problem *problem, size_t size)
{
    PROMISE(code <= SFD_OK && code > -(int)CODES);
    PROMISE(code == SFD_OK || problem->position <= size);
}

/* Random input; sometimes all zero, sometimes large. */
static float *make_input(uint64_t *random, size_t count)
{
    const size_t kind = below(random, 4);
    const float scale = kind == 0 ? 0.0f : kind == 1 ? 1e18f : 1.0f;
    float *x = allocate(count * sizeof *x);

    for (size_t i = 0; i < count; i++) {
        x[i] = scale * ((float)below(random, 2001) - 1000.0f) / 1000.0f;
    }
    return x;
}

static void check_encoding(struct sfd_session *session, const struct bytes *state, uint64_t *random)
{
    const uint32_t keep = (uint32_t)below(random, 200);
    struct sfd_problem problem = {0, 0, 0};
    struct bytes out = {NULL, 0};
    size_t written = 0;
    int code = sfd_update_encode(session, &keep, 1, 7, NULL, 0, &out.size);

    PROMISE(code == SFD_OK);
    out.data = allocate(out.size);
    code = sfd_update_encode(session, &keep, 1, 7, out.data, out.size - 1, &written);
    PROMISE(code == SFD_ERR_CAPACITY);
    code = sfd_update_encode(session, &keep, 1, 7, out.data, out.size, &written);
    PROMISE(code == SFD_OK && written == out.size);
    code = sfd_update_check(out.data, out.size, state->data, state->size, &problem);
    PROMISE(code == SFD_OK);
    free(out.data);
}

static void train(struct sfd_session *session, const struct bytes *artifact,
                  const struct bytes *state, uint32_t batch, uint64_t *random, struct tally *tally)
{
    struct sfd_artifact_view view;
    struct sfd_tensor input, output;
    enum sfd_target target;
    float *x, loss = 0.0f;
    uint32_t correct = 0;
    uint8_t *y;
    int code;

    PROMISE(sfd_artifact_open(artifact->data, artifact->size, &view, NULL) == SFD_OK);
    sfd_artifact_tensor(&view, 0, &input);
    sfd_artifact_tensor(&view, view.output, &output);
    x = make_input(random, (size_t)batch * input.size);
    if (view.loss == SFD_LOSS_CROSS_ENTROPY) {
        const size_t width = below(random, 2) == 0 ? 4 : 8;
        target = width == 4 ? SFD_TARGET_INT32 : SFD_TARGET_INT64;
        y = allocate(batch * width);
        memset(y, 0, batch * width);
        for (uint32_t i = 0; i < batch; i++) {
            const uint32_t label = (uint32_t)below(random, output.channels);
            memcpy(y + i * width, &label, sizeof label); /* little-endian hosts */
        }
    } else {
        target = SFD_TARGET_FLOAT32;
        y = (uint8_t *)make_input(random, (size_t)batch * output.size);
    }
    code = sfd_step(session, x, y, target, batch, 0.1f, 1e-3f, &loss);
    PROMISE(code == SFD_OK || code == SFD_ERR_DIVERGED);
    tally->trained += code == SFD_OK;
    tally->diverged += code == SFD_ERR_DIVERGED;
    code = sfd_gradients(session, x, y, target, batch, &loss);
    PROMISE(code == SFD_OK || code == SFD_ERR_DIVERGED);
    code = sfd_evaluate(session, x, y, target, 1, &loss, &correct);
    PROMISE(code == SFD_OK || code == SFD_ERR_DIVERGED);
    PROMISE(correct <= 1);
    PROMISE(sfd_step(session, x, y, target, batch + 1, 0.1f, 0.0f, &loss) == SFD_ERR_BATCH);
    PROMISE(sfd_step(session, x, y, target, 0, 0.1f, 0.0f, &loss) == SFD_ERR_BATCH);
    check_encoding(session, state, random);
    free(y);
    free(x);
}

static void open_and_train(const struct bytes *artifact, const struct bytes *state, uint32_t batch,
                           const void *workspace, size_t arena_bytes, uint64_t *random,
                           struct tally *tally)
{
    struct sfd_session *session = NULL;
    struct sfd_problem problem = {0, 0, 0};
    uint8_t *arena = allocate(arena_bytes);
    int code;

    code =
        sfd_open(workspace, state->data, state->size, arena, arena_bytes - 1, &session, &problem);
    PROMISE(code == SFD_ERR_ARENA);
    PROMISE(problem.got == arena_bytes - 1 && problem.wanted == arena_bytes);
    sfd_arena_paint(arena, arena_bytes);
    code = sfd_open(workspace, state->data, state->size, arena, arena_bytes, &session, &problem);
    PROMISE(code == SFD_OK && session != NULL);
    train(session, artifact, state, batch, random, tally);
    PROMISE(sfd_arena_touched(arena, arena_bytes) <= arena_bytes);
    free(arena);
}

/* Every buffer lies inside the arena, aligned for floats; two that live at one step are apart. */
static void check_buffers(const void *workspace, const struct sfd_plan *plan)
{
    struct sfd_buffer a, b;
    struct sfd_planned_step step;

    for (uint32_t i = 0; i < plan->buffer_count; i++) {
        PROMISE(sfd_plan_buffer(workspace, i, &a) == SFD_OK);
        PROMISE(a.offset % 4u == 0 && a.offset + a.bytes <= plan->arena_bytes);
        PROMISE(a.kind < SFD_BUFFER_KIND_COUNT && a.first_step <= a.last_step);
        PROMISE(sfd_plan_step(workspace, a.last_step, &step) == SFD_OK);
        for (uint32_t j = 0; j < i; j++) {
            PROMISE(sfd_plan_buffer(workspace, j, &b) == SFD_OK);
            PROMISE(a.offset + a.bytes <= b.offset || b.offset + b.bytes <= a.offset ||
                    a.last_step < b.first_step || b.last_step < a.first_step);
        }
    }
    PROMISE(sfd_plan_buffer(workspace, plan->buffer_count, &a) != SFD_OK);
    PROMISE(sfd_plan_step(workspace, plan->step_count, &step) != SFD_OK);
    PROMISE(plan->live_peak_bytes <= plan->transient_bytes);
    PROMISE(plan->transient_bytes <= plan->arena_bytes);
}

/* A plan that fails leaves none behind. */
static void check_no_plan(const struct bytes *artifact, const struct bytes *state, void *workspace,
                          size_t workspace_bytes)
{
    struct sfd_session *session = NULL;
    struct sfd_plan plan;

    PROMISE(sfd_plan(artifact->data, artifact->size, state->data, state->size, 0, NULL, workspace,
                     workspace_bytes, &plan, NULL) == SFD_ERR_BATCH);
    PROMISE(sfd_open(workspace, state->data, state->size, workspace, workspace_bytes, &session,
                     NULL) == SFD_ERR_ARGUMENT);
}

/* Plan, and go on where the model is small. Gives the code of sfd_plan. */
static int run_model(const struct bytes *artifact, const struct bytes *state, uint64_t *random,
                     struct tally *tally)
{
    const uint32_t batch = 1 + (uint32_t)below(random, 3);
    const struct sfd_options options = {SFD_KERNELS_AUTOMATIC, (int32_t)below(random, 2), 0};
    struct sfd_problem problem = {0, 0, 0};
    struct sfd_plan plan;
    uint64_t workspace_bytes = 0;
    void *workspace;
    int code = sfd_workspace_bytes(artifact->data, artifact->size, &workspace_bytes, &problem);

    if (code != SFD_OK) {
        return code;
    }
    workspace = allocate((size_t)workspace_bytes);
    code = sfd_plan(artifact->data, artifact->size, state->data, state->size, batch, &options,
                    workspace, (size_t)workspace_bytes, &plan, &problem);
    if (code == SFD_OK) {
        check_buffers(workspace, &plan);
    }
    if (code == SFD_OK && plan.arena_bytes <= MAX_ARENA_BYTES &&
        plan.step.forward + plan.step.d_input + plan.step.d_weight <= MAX_MULTIPLY_ADDS) {
        open_and_train(artifact, state, batch, workspace, (size_t)plan.arena_bytes, random, tally);
    }
    check_no_plan(artifact, state, workspace, (size_t)workspace_bytes);
    free(workspace);
    return code;
}

static int run_artifact(const struct bytes *files, uint64_t *random, struct tally *tally)
{
    const struct bytes *artifact = &files[ARTIFACT];
    struct sfd_problem problem = {0, 0, 0};
    const int code = sfd_artifact_check(artifact->data, artifact->size, &problem);
    const int run = run_model(artifact, &files[STATE], random, tally);

    check_problem(code, &problem, artifact->size);
    PROMISE(sfd_artifact_check(artifact->data, artifact->size, NULL) == code);
    PROMISE(code == SFD_OK ? run == SFD_OK || run == SFD_ERR_MISMATCH || run == SFD_ERR_LIMIT
                           : run == code);
    return code;
}

static int run_state(const struct bytes *files, uint64_t *random, struct tally *tally)
{
    const struct bytes *state = &files[STATE];
    struct sfd_problem problem = {0, 0, 0};
    const int code = sfd_container_check(state->data, state->size, &problem);
    const int run = run_model(&files[ARTIFACT], state, random, tally);
    int fit;

    check_problem(code, &problem, state->size);
    PROMISE(code == SFD_OK || run == code);
    fit = sfd_state_check(files[ARTIFACT].data, files[ARTIFACT].size, state->data, state->size,
                          &problem);
    PROMISE(code == SFD_OK ? fit == SFD_OK || fit == run : fit == code);
    fit = sfd_update_check(files[UPDATE].data, files[UPDATE].size, state->data, state->size,
                           &problem);
    PROMISE(code == SFD_OK || fit == code);
    return code != SFD_OK ? code : run;
}

static int run_update(const struct bytes *files, uint64_t *random, struct tally *tally)
{
    const struct bytes *update = &files[UPDATE], *state = &files[STATE];
    struct sfd_problem problem = {0, 0, 0};
    const int code = sfd_container_check(update->data, update->size, &problem);
    int fit;

    check_problem(code, &problem, update->size);
    fit = sfd_update_check(update->data, update->size, state->data, state->size, &problem);
    check_problem(fit, &problem, update->size);
    PROMISE(code == SFD_OK || fit == code);
    (void)run_model(&files[ARTIFACT], update, random, tally);
    return fit;
}

static void print_tally(const char *name, uint64_t count, const struct tally *tally)
{
    printf("%s: %llu accepted, %llu refused, %llu trained, %llu diverged; by code:", name,
           (unsigned long long)tally->code[0], (unsigned long long)(count - tally->code[0]),
           (unsigned long long)tally->trained, (unsigned long long)tally->diverged);
    for (uint32_t i = 1; i < CODES; i++) {
        if (tally->code[i] > 0) {
            printf(" -%u=%llu", (unsigned)i, (unsigned long long)tally->code[i]);
        }
    }
    printf("\n");
}

int main(int argc, char **argv)
{
    static const char *const names[FILES] = {"artifact", "state", "update"};
    static int (*const run[FILES])(const struct bytes *, uint64_t *,
                                   struct tally *) = {run_artifact, run_state, run_update};
    struct bytes files[FILES];
    uint64_t random, count;

    if (argc != 6) {
        fprintf(stderr, "usage: fuzz_mutations ARTIFACT STATE UPDATE SEED COUNT\n");
        return 2;
    }
    random = strtoull(argv[4], NULL, 10);
    count = strtoull(argv[5], NULL, 10);
    for (enum file which = ARTIFACT; which < FILES; which++) {
        files[which] = read_file(argv[1 + which]);
    }
    for (enum file which = ARTIFACT; which < FILES; which++) {
        struct tally whole = {{0}, 0, 0}, tally = {{0}, 0, 0};
        const struct bytes original = files[which];

        PROMISE(run[which](files, &random, &whole) == SFD_OK);
        PROMISE(which == UPDATE || whole.trained + whole.diverged == 1);
        for (uint64_t i = 0; i < count; i++) {
            files[which] = mutate(&original, which, &random);
            tally.code[-run[which](files, &random, &tally)]++;
            free(files[which].data);
        }
        files[which] = original;
        print_tally(names[which], count, &tally);
    }
    for (enum file which = ARTIFACT; which < FILES; which++) {
        free(files[which].data);
    }
    return 0;
}
