/* malloc and free in loops, as C calls them; prints nanoseconds per call, and a sum that must be the same everywhere.
 *
 * While blocks come and go, others of the same sizes stay: some allocators do extra work whenever the last block of a
 * page is freed. Every block is written and checked. Of a row, the fastest of five passes counts. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { SIZES = 400, PASSES = 5 };

static size_t sizes[SIZES];
static uint64_t sum;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e9 + t.tv_nsec;
}

/* A size that the compiler does not know. */
static size_t hidden(size_t n) {
    __asm__ volatile("" : "+r"(n));
    return n;
}

static uint64_t *take(size_t size, uint64_t tag) {
    uint64_t *block = malloc(size);
    if (!block) abort();
    *block = tag;
    return block;
}

static void check(uint64_t *block, uint64_t tag) {
    if (*block != tag) abort();
    sum += tag;
}

/* A block is taken and freed at once. */
static void pair(double *ns) {
    enum { N = 10000000 };
    double start = now();
    for (uint64_t n = 0; n < N; n++) {
        uint64_t *block = take(hidden(64), n);
        check(block, n);
        free(block);
    }
    ns[0] = (now() - start) / N;
}

/* 400 blocks are taken, then freed in the same order: either half timed by itself. */
static void batch(double *ns) {
    enum { ROUNDS = 20000 };
    uint64_t *blocks[SIZES];
    double taking = 0, freeing = 0;
    for (int round = 0; round < ROUNDS; round++) {
        double start = now();
        for (int n = 0; n < SIZES; n++) blocks[n] = take(sizes[n], n);
        double middle = now();
        for (int n = 0; n < SIZES; n++) free(blocks[n]);
        freeing += now() - middle;
        taking += middle - start;
    }
    ns[0] = taking / ROUNDS / SIZES;
    ns[1] = freeing / ROUNDS / SIZES;
}

/* One of 100,000 blocks is replaced by one of another size. */
static void churn(double *ns) {
    enum { LIVE = 100000, N = 3000000 };
    static uint64_t *live[LIVE];
    uint64_t x = 88172645463325252u;
    for (int n = 0; n < LIVE; n++) live[n] = take(sizes[n % SIZES], n);
    double start = now();
    for (int n = 0; n < N; n++) {
        x ^= x << 13, x ^= x >> 7, x ^= x << 17;
        size_t slot = x % LIVE;
        check(live[slot], slot);
        free(live[slot]);
        live[slot] = take(sizes[(x >> 40) % SIZES], slot);
    }
    ns[0] = (now() - start) / N;
    for (int n = 0; n < LIVE; n++) check(live[n], n), free(live[n]);
}

/* A string grows byte by byte. */
static void grow(double *ns) {
    enum { STRINGS = 2000, LENGTH = 3000 };
    double start = now();
    for (int n = 0; n < STRINGS; n++) {
        char *string = NULL;
        for (int length = 1; length <= LENGTH; length += 7) {
            string = realloc(string, length);
            string[length - 1] = (char)length;
        }
        sum += (unsigned char)string[0];
        free(string);
    }
    ns[0] = (now() - start) / STRINGS / (LENGTH / 7);
}

static void row(const char *first, const char *second, void (*run)(double *)) {
    double least[2] = {1e9, 1e9};
    for (int pass = 0; pass < PASSES; pass++) {
        double ns[2] = {0, 0};
        run(ns);
        for (int n = 0; n < 2; n++) least[n] = ns[n] < least[n] ? ns[n] : least[n];
    }
    printf("%s %.2f\n", first, least[0]);
    if (second) printf("%s %.2f\n", second, least[1]);
}

int main(void) {
    void *neighbours[SIZES];
    uint64_t x = 0x9e3779b97f4a7c15u;
    for (int n = 0; n < SIZES; n++) {
        x ^= x << 13, x ^= x >> 7, x ^= x << 17;
        size_t doubling = (size_t)8 << x % 6;
        sizes[n] = doubling + (x >> 20) % doubling;
        neighbours[n] = malloc(sizes[n]);
    }
    row("malloc(64)+free", NULL, pair);
    row("malloc of 400", "free of 400", batch);
    row("churn", NULL, churn);
    row("realloc+7", NULL, grow);
    for (int n = 0; n < SIZES; n++) free(neighbours[n]);
    printf("sum %llu\n", (unsigned long long)sum);
}
