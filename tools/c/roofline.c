/* The ceilings of one core, as JSON: multiply-adds from registers, multiply-adds that each load a
 * vector, and copies, for growing buffers. tools/roofline.py builds and runs it. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif
#define LANES (VECTOR_BYTES / sizeof(float))
#define SUMS 12u /* independent sums, enough to hide the latency, few enough for 16 registers */
#define SMALLEST ((size_t)16 << 10)
#define LARGEST ((size_t)256 << 20)
#define BYTES_A_SAMPLE ((size_t)512 << 20)
#define SAMPLES 5u

typedef float vector __attribute__((vector_size(VECTOR_BYTES)));

static volatile float sink; /* what is computed is used */

static double cpu_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void use(const vector *sums)
{
    float total = 0.0f;
    for (size_t i = 0; i < SUMS; ++i)
        for (size_t lane = 0; lane < LANES; ++lane)
            total += sums[i][lane];
    sink = total;
}

static vector splat(float value)
{
    vector all;
    for (size_t lane = 0; lane < LANES; ++lane)
        all[lane] = value;
    return all;
}

/* Seconds of `rounds` times SUMS multiply-adds that touch no memory. */
static double from_registers(size_t rounds)
{
    vector sums[SUMS];
    const vector factor = splat(0.999f + 1e-9f * sink);
    double start;
    for (size_t i = 0; i < SUMS; ++i)
        sums[i] = splat((float)i);
    start = cpu_seconds();
    for (size_t round = 0; round < rounds; ++round)
        for (size_t i = 0; i < SUMS; ++i)
            sums[i] = sums[i] * factor + factor;
    start = cpu_seconds() - start;
    use(sums);
    return start;
}

/* Seconds of reading `count` vectors `rounds` times, one multiply-add each. */
static double from_memory(const vector *x, size_t count, size_t rounds)
{
    vector sums[SUMS];
    const vector factor = splat(0.5f);
    double start;
    memset(sums, 0, sizeof sums);
    start = cpu_seconds();
    for (size_t round = 0; round < rounds; ++round) {
        for (size_t at = 0; at + SUMS <= count; at += SUMS)
            for (size_t i = 0; i < SUMS; ++i)
                sums[i] += factor * x[at + i];
        __asm__ volatile("" ::: "memory"); /* each round reads again */
    }
    start = cpu_seconds() - start;
    use(sums);
    return start;
}

/* Seconds of copying one half of `count` vectors to the other, `rounds` times. */
static double copied(vector *x, size_t count, size_t rounds)
{
    const size_t half = count / 2;
    const double start = cpu_seconds();
    for (size_t round = 0; round < rounds; ++round) {
        for (size_t at = 0; at < half; ++at)
            x[half + at] = x[at];
        __asm__ volatile("" ::: "memory");
    }
    return cpu_seconds() - start;
}

static double less(double a, double b)
{
    return a < b ? a : b;
}

int main(void)
{
    vector *x = aligned_alloc(4096, LARGEST);
    const size_t rounds = 4000000;
    double best = 1e9;
    if (x == NULL)
        return 1;
    memset(x, 0, LARGEST);
    for (unsigned sample = 0; sample < SAMPLES; ++sample)
        best = less(best, from_registers(rounds));
    printf("{\"vector_bytes\": %d, \"peak_flops\": %.4g,\n \"sizes\": [", VECTOR_BYTES,
           2.0 * (double)(rounds * SUMS * LANES) / best);
    for (size_t bytes = SMALLEST; bytes <= LARGEST; bytes *= 2) {
        const size_t count = bytes / VECTOR_BYTES / SUMS * SUMS;
        const size_t repeats = BYTES_A_SAMPLE / bytes;
        const double moved = (double)(count * repeats) * VECTOR_BYTES;
        double load = 1e9;
        double copy = 1e9;
        for (unsigned sample = 0; sample < SAMPLES; ++sample) {
            load = less(load, from_memory(x, count, repeats));
            copy = less(copy, copied(x, count, repeats));
        }
        printf("%s\n  {\"bytes\": %zu, \"load_bytes_per_second\": %.4g, \"copy_bytes_per_second\": "
               "%.4g}",
               bytes == SMALLEST ? "" : ",", bytes, moved / load, moved / copy);
    }
    printf("]}\n");
    free(x);
    return 0;
}
