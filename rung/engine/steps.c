/* What a step does besides matrix products; called from steps.py. Numbers are float32 ("wide") or
   bf16. What a row gives does not depend on the rows beside it. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LANES 16
#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(64)));
typedef int32_t ints __attribute__((vector_size(64)));
typedef uint32_t bits __attribute__((vector_size(64)));
typedef uint16_t halves __attribute__((vector_size(32)));

INLINE vec load(const void *base, long at, int wide) {
    vec out;
    if (wide) {
        memcpy(&out, (const float *)base + at, sizeof out);
        return out;
    }
    halves raw;
    memcpy(&raw, (const uint16_t *)base + at, sizeof raw);
    return (vec)(__builtin_convertvector(raw, bits) << 16);
}

/* bf16: to the nearest, ties to even. */
INLINE void store(void *base, long at, vec x, int wide) {
    if (wide) {
        memcpy((float *)base + at, &x, sizeof x);
        return;
    }
    bits b = (bits)x;
    halves raw = __builtin_convertvector((b + 0x7fff + ((b >> 16) & 1)) >> 16, halves);
    memcpy((uint16_t *)base + at, &raw, sizeof raw);
}

INLINE float sum(vec x) {
    float part[LANES];
    memcpy(part, &x, sizeof x);
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) part[i] += part[i + half];
    return part[0];
}

/* Lane i of the result is the sum of x[i]: four rounds of halving, two vectors into one. */
INLINE vec sums(const vec x[LANES]) {
    vec a[8], b[4], c[2];
#define HALVES(x, y, ...) __builtin_shufflevector(x, y, __VA_ARGS__)
    for (int i = 0; i < 8; i++)
        a[i] = HALVES(x[i], x[i + 8], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
               HALVES(x[i], x[i + 8], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    for (int i = 0; i < 4; i++)
        b[i] = HALVES(a[i], a[i + 4], 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27) +
               HALVES(a[i], a[i + 4], 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
    for (int i = 0; i < 2; i++)
        c[i] = HALVES(b[i], b[i + 2], 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
               HALVES(b[i], b[i + 2], 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
    return HALVES(c[0], c[1], 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30) +
           HALVES(c[0], c[1], 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
#undef HALVES
}

/* e to the x for x <= 0, to 2e-7 of it, and 0 below e^-87: 2^n times the series of what is left,
   |rest| < 0.35. */
INLINE vec exponential(vec x) {
    const vec least = (vec){} - 87.0f;
    const ints below = x < least;
    x = (vec)((below & (ints)least) | (~below & (ints)x));
    vec n = (x * 1.44269504f + 12582912.0f) - 12582912.0f; /* rounds to whole numbers */
    vec rest = x - n * 0.693359375f + n * 2.12194440e-4f;
    vec series = rest * (1.0f / 720) + (1.0f / 120);
    series = series * rest + (1.0f / 24);
    series = series * rest + (1.0f / 6);
    series = series * rest + 0.5f;
    series = series * rest + 1.0f;
    series = series * rest + 1.0f;
    series = series * (vec)((__builtin_convertvector(n, ints) + 127) << 23);
    return (vec)(~below & (ints)series);
}

/* Attention of one new token of each row over what its slot holds.

   It reads every key and value once and does little with each, so its time is that of reading
   memory: each row reads only as far as it is long, and nothing but the output is written. */
typedef struct {
    const void *query, *key, *value; /* [N, H | KV, D]; strides of rows and heads below */
    void *keys, *values;             /* slots [rows, KV, length, D] */
    void *out;                       /* [N, H, D] */
    const int64_t *at;               /* [N]: where each row writes its key and value */
    const void *cos, *sin;           /* [N, D]: query and key are turned by it first; or NULL */
    int64_t query_row, query_head, key_row, key_head, value_row, value_head;
    int64_t slot_row, slot_head;
    int64_t rows, heads, kv_heads, width;
    int64_t window;       /* 0: none */
    float scale, softcap; /* softcap 0: none */
    int32_t wide_query;   /* query and key are float32 */
    int32_t wide;         /* value, slots and output are float32 */
    int32_t wide_table;   /* cos and sin are float32 */
} Step;

/* x of a row's query or key, turned where there are tables, times the factor, as float32. */
INLINE void prepare(const Step *s, float *to, const void *from, long at, long row, float factor,
                    long width, int wide) {
    const long half = width / 2, table = row * width;
    if (!s->cos) {
        for (long d = 0; d < width; d += LANES) store(to, d, load(from, at + d, wide) * factor, 1);
        return;
    }
    for (long d = 0; d < half; d += LANES) {
        vec low = load(from, at + d, wide), high = load(from, at + half + d, wide);
        vec first = low * load(s->cos, table + d, s->wide_table) -
                    high * load(s->sin, table + d, s->wide_table);
        vec second = high * load(s->cos, table + half + d, s->wide_table) +
                     low * load(s->sin, table + half + d, s->wide_table);
        store(to, d, first * factor, 1);
        store(to, half + d, second * factor, 1);
    }
}

/* One row and key head with the `shared` query heads that read it. scores [shared, span]. */
INLINE void attend(const Step *s, long row, long head, float *scores, long span, float *queries,
                   long width, int wide_query, int wide) {
    const long shared = s->heads / s->kv_heads, last = s->at[row];
    const long first = s->window && last >= s->window ? last - s->window + 1 : 0;
    const long count = last - first + 1, padded = (count + LANES - 1) / LANES * LANES;
    const long slot = row * s->slot_row + head * s->slot_head;
    const long from_key = row * s->key_row + head * s->key_head;
    const long from_value = row * s->value_row + head * s->value_head;
    prepare(s, queries, s->key, from_key, row, 1.0f, width, wide_query);
    for (long d = 0; d < width; d += LANES) {
        store(s->keys, slot + last * width + d, load(queries, d, 1), wide);
        store(s->values, slot + last * width + d, load(s->value, from_value + d, wide), wide);
    }
    for (long r = 0; r < shared; r++) {
        const long from = row * s->query_row + (head * shared + r) * s->query_head;
        prepare(s, queries + r * width, s->query, from, row, s->scale, width, wide_query);
    }
    for (long l = 0; l < count; l += LANES) {
        for (long r = 0; r < shared; r++) {
            vec dots[LANES];
            for (long i = 0; i < LANES; i++) {
                const long key = l + i < count ? first + l + i : last;
                dots[i] = (vec){};
                for (long d = 0; d < width; d += LANES)
                    dots[i] += load(queries, r * width + d, 1) *
                               load(s->keys, slot + key * width + d, wide);
            }
            store(scores, r * span + l, sums(dots), 1);
        }
    }
    for (long r = 0; r < shared; r++) {
        float *mine = scores + r * span, highest = -INFINITY;
        for (long l = 0; l < count; l++) {
            if (s->softcap) mine[l] = s->softcap * tanhf(mine[l] / s->softcap);
            highest = mine[l] > highest ? mine[l] : highest;
        }
        for (long l = count; l < padded; l++) mine[l] = -INFINITY;
        vec total = {};
        for (long l = 0; l < padded; l += LANES) {
            vec weight = exponential(load(mine, l, 1) - highest);
            store(mine, l, weight, 1);
            total += weight;
        }
        const float scaled = 1.0f / sum(total);
        vec mixed[width / LANES];
        memset(mixed, 0, sizeof mixed);
        long l = 0;
        for (; l + 4 <= count; l += 4) {
            const long at = slot + (first + l) * width;
            for (long d = 0; d < width; d += LANES)
                mixed[d / LANES] += mine[l] * load(s->values, at + d, wide) +
                                    mine[l + 1] * load(s->values, at + width + d, wide) +
                                    mine[l + 2] * load(s->values, at + 2 * width + d, wide) +
                                    mine[l + 3] * load(s->values, at + 3 * width + d, wide);
        }
        for (; l < count; l++)
            for (long d = 0; d < width; d += LANES)
                mixed[d / LANES] += mine[l] * load(s->values, slot + (first + l) * width + d, wide);
        for (long d = 0; d < width; d += LANES)
            store(s->out, (row * s->heads + head * shared + r) * width + d,
                  mixed[d / LANES] * scaled, wide);
    }
}

/* The usual widths and types as constants: their loops are unrolled. */
static void attend_any(const Step *s, long row, long head, float *scores, long span,
                       float *queries) {
    if (s->width == 64 && !s->wide && s->wide_query)
        attend(s, row, head, scores, span, queries, 64, 1, 0);
    else if (s->width == 64 && !s->wide)
        attend(s, row, head, scores, span, queries, 64, 0, 0);
    else if (s->width == 128 && !s->wide && !s->wide_query)
        attend(s, row, head, scores, span, queries, 128, 0, 0);
    else if (s->wide)
        attend(s, row, head, scores, span, queries, s->width, s->wide_query, 1);
    else
        attend(s, row, head, scores, span, queries, s->width, s->wide_query, 0);
}

/* 0, or 1 where there is no memory for the scores. threads: at most so many. */
int step_attention(const Step *s, int threads) {
    const long items = s->rows * s->kv_heads, shared = s->heads / s->kv_heads;
    long longest = 0, total = 0;
    for (long row = 0; row < s->rows; row++) {
        longest = s->at[row] > longest ? s->at[row] : longest;
        total += s->at[row] + 1;
    }
    const long span = (longest + LANES) / LANES * LANES + LANES;
    int failed = 0;
    /* a few microseconds of work are not worth waking a thread */
#pragma omp parallel num_threads(threads) if (total * s->heads > 2000) reduction(| : failed)
    {
        float *scores = malloc(sizeof(float) * shared * (span + s->width));
        failed = scores == NULL;
#pragma omp for schedule(dynamic, 2)
        for (long item = 0; item < items; item++)
            if (!failed)
                attend_any(s, item / s->kv_heads, item % s->kv_heads, scores, span,
                           scores + shared * span);
        free(scores);
    }
    return failed;
}

typedef struct {
    void *input;        /* [rows, width] */
    const void *added;  /* [rows, width]: added to the input, in place, first; or NULL */
    const void *weight; /* [width] */
    void *out;          /* [rows, width] */
    int64_t rows, width;
    float eps, offset; /* the weight is offset + weight */
    int32_t wide, wide_added, wide_weight, wide_out;
} Norm;

/* x / sqrt(mean(x^2) + eps), after what is added, rounded to the type of x, times the weight. */
INLINE void norm_row(const Norm *s, long row, int wide, int wide_weight, int wide_out) {
    const long at = row * s->width;
    vec squares = {};
    for (long d = 0; d < s->width; d += LANES) {
        vec x = load(s->input, at + d, wide);
        if (s->added) {
            x += load(s->added, at + d, s->wide_added);
            store(s->input, at + d, x, wide);
        }
        squares += x * x;
    }
    const float factor = 1.0f / sqrtf(sum(squares) / s->width + s->eps);
    for (long d = 0; d < s->width; d += LANES) {
        vec x = load(s->input, at + d, wide) * factor;
        if (!wide) {
            uint16_t rounded[LANES];
            store(rounded, 0, x, 0);
            x = load(rounded, 0, 0);
        }
        store(s->out, at + d, x * (load(s->weight, d, wide_weight) + s->offset), wide_out);
    }
}

void rms_norm(const Norm *s, int threads) {
#pragma omp parallel for num_threads(threads) if (s->rows * s->width > 30000)
    for (long row = 0; row < s->rows; row++) {
        if (s->wide && s->wide_weight && s->wide_out)
            norm_row(s, row, 1, 1, 1);
        else if (s->wide && s->wide_weight)
            norm_row(s, row, 1, 1, 0);
        else
            norm_row(s, row, s->wide, s->wide_weight, s->wide_out);
    }
}

typedef struct {
    const void *input, *cos, *sin; /* [N, H, T, D]; [N, T, D], contiguous */
    void *out;                  /* [N, T, H, D], contiguous */
    int64_t in_row, in_head, in_token;
    int64_t rows, heads, tokens, width;
    int64_t same; /* 1: all rows share the tables of the first */
    int32_t wide, wide_table, wide_out;
} Turn;

/* Rotary positions: x * cos + (the halves of x swapped, the first negated) * sin. */
INLINE void turn_token(const Turn *s, long item, int wide, int wide_table, int wide_out) {
    const long row = item / s->tokens, token = item % s->tokens, half = s->width / 2;
    const long table = ((s->same ? 0 : row) * s->tokens + token) * s->width;
    for (long head = 0; head < s->heads; head++) {
        const long from = row * s->in_row + head * s->in_head + token * s->in_token;
        const long to = (item * s->heads + head) * s->width;
        for (long d = 0; d < half; d += LANES) {
            vec low = load(s->input, from + d, wide), high = load(s->input, from + half + d, wide);
            store(s->out, to + d,
                  low * load(s->cos, table + d, wide_table) -
                      high * load(s->sin, table + d, wide_table), wide_out);
            store(s->out, to + half + d,
                  high * load(s->cos, table + half + d, wide_table) +
                      low * load(s->sin, table + half + d, wide_table), wide_out);
        }
    }
}

void turn(const Turn *s, int threads) {
    const long items = s->rows * s->tokens;
#pragma omp parallel for num_threads(threads) if (items * s->heads * s->width > 30000)
    for (long item = 0; item < items; item++) {
        if (!s->wide && s->wide_table && s->wide_out)
            turn_token(s, item, 0, 1, 1);
        else
            turn_token(s, item, s->wide, s->wide_table, s->wide_out);
    }
}

typedef struct {
    const void *input; /* [rows, 2 * width]: gates, then what they let through */
    void *out;         /* [rows, width] */
    int64_t rows, width;
    int32_t wide;
} Gate;

/* x / (1 + e^-x) of the gate, times the other (SwiGLU, Shazeer 2020). */
INLINE void gate_row(const Gate *s, long row, int wide) {
    for (long d = 0; d < s->width; d += LANES) {
        const vec x = load(s->input, 2 * row * s->width + d, wide);
        const vec other = load(s->input, (2 * row + 1) * s->width + d, wide);
        const ints negative = x < 0.0f;
        const vec power = exponential((vec)((ints)x | (ints)((bits){} + 0x80000000u))); /* -|x| */
        const vec one = (vec){} + 1.0f;
        const vec top = (vec)((negative & (ints)power) | (~negative & (ints)one));
        store(s->out, row * s->width + d, x * top / (one + power) * other, wide);
    }
}

void gate(const Gate *s, int threads) {
#pragma omp parallel for num_threads(threads) if (s->rows * s->width > 10000)
    for (long row = 0; row < s->rows; row++) {
        if (s->wide)
            gate_row(s, row, 1);
        else
            gate_row(s, row, 0);
    }
}

#define RUN 256 /* tokens whose weights are added up together */

typedef struct {
    const void *logits;     /* [rows, width], rows `stride` apart */
    const double *uniforms; /* [rows], in [0, 1) */
    const float *heats;     /* [rows], temperatures > 0 */
    double *ends;           /* [rows, runs]: space for sums */
    int64_t *chosen;        /* [rows]: -1 where the sum is not finite */
    int64_t rows, width, stride;
    int32_t wide;
} Draw;

INLINE float one(const Draw *s, long at) {
    if (s->wide) return ((const float *)s->logits)[at];
    uint32_t b = (uint32_t)((const uint16_t *)s->logits)[at] << 16;
    float x;
    memcpy(&x, &b, sizeof x);
    return x;
}

/* 16 weights from token t on, 0 beyond the vocabulary. */
INLINE vec weights(const Draw *s, long from, long t, float highest, float factor, int wide) {
    vec x = {};
    if (t + LANES <= s->width)
        x = load(s->logits, from + t, wide);
    else
        for (int i = 0; i < LANES; i++) x[i] = t + i < s->width ? one(s, from + t + i) : -INFINITY;
    return exponential((x - highest) * factor);
}

/* By inverse CDF: the first token whose running sum passes uniform x total. */
INLINE void draw_row(const Draw *s, long row, int wide) {
    const long from = row * s->stride, runs = (s->width + RUN - 1) / RUN;
    double *ends = s->ends + row * runs, total = 0;
    vec tops = (vec){} - INFINITY;
    float highest = -INFINITY;
    long t = 0;
    for (; t + LANES <= s->width; t += LANES) {
        vec x = load(s->logits, from + t, wide);
        ints above = x > tops;
        tops = (vec)((above & (ints)x) | (~above & (ints)tops));
    }
    for (; t < s->width; t++) highest = one(s, from + t) > highest ? one(s, from + t) : highest;
    for (int i = 0; i < LANES; i++) highest = tops[i] > highest ? tops[i] : highest;
    const float factor = 1.0f / s->heats[row];
    for (long run = 0; run < runs; run++) {
        vec part = {};
        for (long i = 0; i < RUN && run * RUN + i < s->width; i += LANES)
            part += weights(s, from, run * RUN + i, highest, factor, wide);
        ends[run] = total += sum(part);
    }
    s->chosen[row] = -1;
    if (!isfinite(total)) return;
    const double goal = s->uniforms[row] * total;
    long run = 0;
    while (run < runs - 1 && ends[run] <= goal) run++;
    double passed = run ? ends[run - 1] : 0;
    /* a run's sum rounds in another order than its running sums: its last token takes the rest */
    for (long i = 0; i < RUN && run * RUN + i < s->width; i += LANES) {
        vec part = weights(s, from, run * RUN + i, highest, factor, wide);
        for (int lane = 0; lane < LANES; lane++) {
            if (part[lane] > 0) s->chosen[row] = run * RUN + i + lane;
            passed += part[lane];
            if (part[lane] > 0 && passed > goal) return;
        }
    }
}

void draw(const Draw *s, int threads) {
#pragma omp parallel for num_threads(threads) if (s->rows * s->width > 10000)
    for (long row = 0; row < s->rows; row++) {
        if (s->wide)
            draw_row(s, row, 1);
        else
            draw_row(s, row, 0);
    }
}
