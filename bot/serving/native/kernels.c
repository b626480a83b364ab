/* One step of a Llama-like model on a CPU: B rows, one new token each, in one call. They belong to as many requests, or
 * are a piece of one request's prompt.
 *
 * Weights stay as they lie in the prepared base: NF4 nibbles (https://arxiv.org/abs/2305.14314), bfloat16 or float32.
 * Arithmetic is in float32, so that a reply, a held-out score and a training step see the same model; NF4 weights that are
 * marked `fast` are multiplied as 16-bit integers where the processor has instructions for that (fast.h). Every row
 * brings its own LoRA adapter, or none. Python owns every buffer that is named here; nothing is allocated and nothing is kept.
 *
 * Reading order: Linear and its product, adapters, the small operations, attention, the step; threads.h shares its phases.
 */
#define _GNU_SOURCE /* the processors of a thread */
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "threads.h"

/* Eight lanes at any address: AVX2's width. Compilers split them where the machine has less. */
typedef float f8 __attribute__((vector_size(32), aligned(4), may_alias));
typedef int32_t i8 __attribute__((vector_size(32), aligned(4), may_alias));
typedef uint32_t u8 __attribute__((vector_size(32), aligned(4), may_alias));
typedef uint16_t h8 __attribute__((vector_size(16), aligned(2), may_alias));

#define LOAD(type, pointer) (*(const type *)(pointer))
#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (i8){__VA_ARGS__})
#endif
#define STORE(pointer, value) (*(f8 *)(pointer) = (value))

enum { F32, BF16, NF4 };
enum { SILU, GELU_TANH };
enum { Q, K, V, O, GATE, UP, DOWN, PROJECTIONS };
enum { BLOCK = 64, TILE_ROWS = 4, PANEL = 8, PANEL_INPUTS = 512, MAX_WIDTH = 32768, HEADS_AT_ONCE = 3, STREAMED_ROWS = 16 };
/* Outputs of a unit of products and of one of small operations; layers with one input; the largest rank of an adapter. */
enum { UNIT = 16, STRIPE = 64, SHARED_INPUT = 3, MOST_RANKS = 256 };
#if defined(__AVX512VL__)
enum { TILE_OUTPUTS = 4, LANES = 8 }; /* 32 registers */
#else
enum { TILE_OUTPUTS = 2, LANES = 4 };
#endif

/* `out` x `in` weights, row-major. NF4: two weights a byte, the first in the high nibble, one scale per 64 weights. */
typedef struct {
    const void *data;
    const float *scales, *bias; /* bias may be NULL */
    int32_t kind, in, out, fast;
} Linear;

/* The update (x @ down) @ up of one projection: down (in, rank), up (rank, out), already scaled. Rank 0: none. */
typedef struct {
    const float *down, *up;
    int32_t rank, unused;
} Lora;

typedef struct {
    Linear projections[PROJECTIONS];
    const float *attention_in, *attention_out, *mlp_in, *mlp_out; /* RMS norms (hidden); the `out` ones may be NULL */
    const float *q_norm, *k_norm;                                 /* per head (head_dim), or NULL */
    const float *cosines, *sines;                                 /* rotary tables (context, head_dim), or NULL */
    void *keys, *values; /* (cache rows, kv_heads, context, head_dim), float32 or, if the model's `halves`, float16 */
    int32_t window, unused;                                       /* keys that a query sees, 0 for all */
} Layer;

typedef struct {
    const Layer *layers;
    const float *final_norm;
    Linear embedding, head;
    int32_t layer_count, hidden, intermediate, heads, kv_heads, head_dim, context, activation, threads, halves;
    float eps, embedding_scale, attention_scale, attention_cap, residual_scale, logit_scale, logit_cap;
} Model;

/* What a step needs besides the weights; each buffer holds `rows` rows of the width in brackets, `scores` one a thread. */
typedef struct {
    float *x, *normed, *mixed;      /* hidden */
    float *q, *attended;            /* heads * head_dim */
    float *k, *v;                   /* kv_heads * head_dim */
    float *gate, *up;               /* intermediate */
    float *scores;                  /* heads / kv_heads * context */
    float *dealt;                   /* the widest input */
    float *low;                     /* 3 * MOST_RANKS: x @ down of projections that share an input */
    int32_t *groups;                /* 2 */
} Workspace;

static const float CODE[16] __attribute__((aligned(32))) = {
    -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f,
    -0.28444138169288635f, -0.18477343022823334f, -0.09105003625154495f, 0.0f,
    0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f, 0.33791524171829224f,
    0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f,
};

/* ---- products -------------------------------------------------------------------------------------------------- */

static inline float sum8(f8 v)
{
    return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}

static inline f8 choose(i8 mask, f8 yes, f8 no)
{
    return (f8)((mask & (i8)yes) | (~mask & (i8)no));
}

#if defined(__AVX2__)
#include <immintrin.h>
/* Eight codes from the lowest nibble of eight words: two look-ups among eight values and a choice by the nibble's top bit. */
static inline f8 code_of(u8 words, u8 top_bits)
{
    const __m256 low = _mm256_permutevar8x32_ps(_mm256_load_ps(CODE), (__m256i)words);
    const __m256 high = _mm256_permutevar8x32_ps(_mm256_load_ps(CODE + 8), (__m256i)words);
    return (f8)_mm256_blendv_ps(low, high, (__m256)top_bits);
}
#else
static inline f8 code_of(u8 words, u8 top_bits)
{
    f8 values;
    (void)top_bits;
    for (int lane = 0; lane < 8; lane++)
        values[lane] = CODE[words[lane] & 15];
    return values;
}
#endif

/* Part `c` (0 to 7) of the 64 weights in 32 bytes, read as eight little-endian words: lane L is weight 8 L + c. */
static inline f8 codes(u8 words, int c)
{
    const int at = (c ^ 1) * 4; /* the first weight of a byte is in its high nibble */
    return code_of(words >> at, words << (28 - at));
}

static inline f8 widen(const uint16_t *values)
{
    return (f8)(__builtin_convertvector(LOAD(h8, values), u8) << 16);
}

/* Instead of putting the weights of a block in order, the inputs are dealt out like them: a transposed 8 x 8 square. */
static void deal(const float *x, size_t count, float *dealt)
{
    for (size_t block = 0; block < count; block += BLOCK)
        for (int c = 0; c < 8; c++)
            for (int lane = 0; lane < 8; lane++)
                dealt[block + 8 * c + lane] = x[block + 8 * lane + c];
}

/* Weights `from` .. `from + count` of output `o` as float32 (NF4 as `deal` leaves its inputs), in the buffer unless they lie
 * there so already. */
static inline const float *unpacked(const Linear *l, int o, int from, int count, float *buffer)
{
    const size_t first = (size_t)o * l->in + from;
    if (l->kind == F32)
        return (const float *)l->data + first;
    if (l->kind == BF16) {
        const uint16_t *values = (const uint16_t *)l->data + first;
        for (int i = 0; i < count; i += 8)
            STORE(buffer + i, widen(values + i));
        return buffer;
    }
    const uint8_t *packed = (const uint8_t *)l->data + first / 2;
    const float *scales = l->scales + first / BLOCK;
    for (int block = 0; block < count; block += BLOCK) {
        const u8 words = LOAD(u8, packed + block / 2);
        for (int c = 0; c < 8; c++)
            STORE(buffer + block + 8 * c, codes(words, c) * scales[block / BLOCK]);
    }
    return buffer;
}

/* One output of up to four rows straight from the nibbles; the scale of a block multiplies its sums. */
static inline __attribute__((always_inline)) void nf4_dots(
    const Linear *l, int o, const float *dealt, int rows, float *y)
{
    const int n = l->in;
    const uint8_t *row = (const uint8_t *)l->data + (size_t)o * n / 2;
    const float *scales = l->scales + (size_t)o * n / BLOCK;
    f8 totals[TILE_ROWS] = {{0}};
    for (int block = 0; block < n; block += BLOCK) {
        const u8 words = LOAD(u8, row + block / 2);
        f8 sums[TILE_ROWS] = {{0}};
#pragma GCC unroll 8
        for (int c = 0; c < 8; c++) {
            const f8 weights = codes(words, c);
            for (int r = 0; r < rows; r++)
                sums[r] += weights * LOAD(f8, dealt + (size_t)r * n + block + 8 * c);
        }
        for (int r = 0; r < rows; r++)
            totals[r] += sums[r] * scales[block / BLOCK];
    }
    for (int r = 0; r < rows; r++)
        y[(size_t)r * l->out + o] = sum8(totals[r]);
}

/* Add some outputs of up to four rows to y: their sums live in registers while weights and inputs stream by. */
static inline __attribute__((always_inline)) void tile(
    const float *const *weights, const float *x, size_t x_stride, int count, int outputs, int rows, float *y,
    size_t y_stride)
{
    f8 sums[TILE_OUTPUTS][TILE_ROWS];
    for (int o = 0; o < outputs; o++)
        for (int r = 0; r < rows; r++)
            sums[o][r] = (f8){0};
    for (int i = 0; i < count; i += 8) {
        f8 inputs[TILE_ROWS];
        for (int r = 0; r < rows; r++)
            inputs[r] = LOAD(f8, x + r * x_stride + i);
        for (int o = 0; o < outputs; o++) {
            const f8 w = LOAD(f8, weights[o] + i);
            for (int r = 0; r < rows; r++)
                sums[o][r] += w * inputs[r];
        }
    }
    for (int r = 0; r < rows; r++)
        for (int o = 0; o < outputs; o++)
            y[r * y_stride + o] += sum8(sums[o][r]);
}

/* The same for any number of rows. */
static inline __attribute__((always_inline)) void tiles(
    const float *const *weights, const float *x, size_t x_stride, int count, int outputs, int rows, float *y,
    size_t y_stride)
{
    for (int r = 0; r < rows; r += TILE_ROWS) {
        const float *inputs = x + r * x_stride;
        float *out = y + r * y_stride;
        switch (rows - r) {
        case 1: tile(weights, inputs, x_stride, count, outputs, 1, out, y_stride); break;
        case 2: tile(weights, inputs, x_stride, count, outputs, 2, out, y_stride); break;
        case 3: tile(weights, inputs, x_stride, count, outputs, 3, out, y_stride); break;
        default: tile(weights, inputs, x_stride, count, outputs, TILE_ROWS, out, y_stride);
        }
    }
}

/* A panel's outputs of all rows. So much of its weights is unpacked at a time that it stays in the first-level cache
 * beside four rows' inputs. */
static void panel_outputs(const Linear *l, const float *x, int rows, int first, float *y)
{
    float buffer[PANEL][PANEL_INPUTS + 16] __attribute__((aligned(32)));
    const int n = l->in, outputs = l->out - first < PANEL ? l->out - first : PANEL;
    const int parts = (n + PANEL_INPUTS - 1) / PANEL_INPUTS, step = (n / parts + BLOCK - 1) / BLOCK * BLOCK;
    for (int r = 0; r < rows; r++)
        memset(y + (size_t)r * l->out + first, 0, sizeof(float) * outputs);
    for (int from = 0; from < n; from += step) {
        const int count = n - from < step ? n - from : step;
        const float *weights[PANEL];
        for (int o = 0; o < outputs; o++)
            weights[o] = unpacked(l, first + o, from, count, buffer[o]);
        int o = 0;
        for (; o + TILE_OUTPUTS <= outputs; o += TILE_OUTPUTS)
            tiles(weights + o, x + from, n, count, TILE_OUTPUTS, rows, y + first + o, l->out);
        for (; o < outputs; o += 2)
            tiles(weights + o, x + from, n, count, 2, rows, y + first + o, l->out);
    }
}

/* One output of up to four rows from bfloat16 weights. They stream by one output at a time: a processor foresees four
 * outputs' weights, side by side in one page, so badly that reading them takes twice as long. */
static inline __attribute__((always_inline)) void bf16_dots(const Linear *l, int o, const float *x, int rows, float *y)
{
    enum { CHAINS = 4 }; /* of sums, so that none waits for the one before */
    const int n = l->in, chains = rows > 2 ? 2 : CHAINS;
    const uint16_t *weights = (const uint16_t *)l->data + (size_t)o * n;
    f8 sums[TILE_ROWS][CHAINS] = {{{0}}};
    int i = 0;
    for (; i + 8 * CHAINS <= n; i += 8 * CHAINS)
#pragma GCC unroll 4
        for (int part = 0; part < CHAINS; part++) {
            const f8 w = widen(weights + i + 8 * part);
            for (int r = 0; r < rows; r++)
                sums[r][part % chains] += w * LOAD(f8, x + (size_t)r * n + i + 8 * part);
        }
    for (; i < n; i += 8)
        for (int r = 0; r < rows; r++)
            sums[r][0] += widen(weights + i) * LOAD(f8, x + (size_t)r * n + i);
    for (int r = 0; r < rows; r++) {
        f8 total = sums[r][0];
        for (int chain = 1; chain < chains; chain++)
            total += sums[r][chain];
        y[(size_t)r * l->out + o] = sum8(total);
    }
}

static void bf16_output(const Linear *l, int o, const float *x, int rows, float *y)
{
    for (int r = 0; r < rows; r += TILE_ROWS) {
        const float *inputs = x + (size_t)r * l->in;
        float *out = y + (size_t)r * l->out;
        switch (rows - r) {
        case 1: bf16_dots(l, o, inputs, 1, out); break;
        case 2: bf16_dots(l, o, inputs, 2, out); break;
        case 3: bf16_dots(l, o, inputs, 3, out); break;
        default: bf16_dots(l, o, inputs, 4, out);
        }
    }
}

static void one_output(const Linear *l, int o, const float *dealt, int rows, float *y)
{
    switch (rows) {
    case 1: nf4_dots(l, o, dealt, 1, y); break;
    case 2: nf4_dots(l, o, dealt, 2, y); break;
    case 3: nf4_dots(l, o, dealt, 3, y); break;
    case 4: nf4_dots(l, o, dealt, 4, y); break;
    }
}

#include "fast.h"

/* Products of one input with the weights of up to three layers, in one form. A unit is UNIT outputs of all rows. */
typedef struct {
    const Linear *linears[SHARED_INPUT];
    float *y[SHARED_INPUT]; /* (rows, out) */
    const float *x;         /* (rows, in) */
    float *room;
    int count, form, rows, first_unit; /* units before that are not products */
} Products;

static inline int units_of(int out)
{
    return (out + UNIT - 1) / UNIT;
}

static void prepare_part(const void *work, int first, int end)
{
    const Products *p = work;
    prepare(p->form, p->x, p->rows, p->linears[0]->in, first, end, p->room);
}

static void add_bias(const Linear *l, int rows, int first, int end, float *y)
{
    for (int r = 0; r < rows; r++)
        for (int o = first; o < end; o++)
            y[(size_t)r * l->out + o] += l->bias[o];
}

static void products_part(const void *work, int first, int end)
{
    const Products *p = work;
    for (int i = 0; i < p->count; i++) {
        const Linear *l = p->linears[i];
        const int units = units_of(l->out), from = first > 0 ? first * UNIT : 0;
        const int to = end < units ? end * UNIT : l->out;
        if (from < to) {
            outputs(l, p->form, p->x, p->room, p->rows, from, to, p->y[i]);
            if (l->bias)
                add_bias(l, p->rows, from, to, p->y[i]);
        }
        first -= units;
        end -= units;
    }
}

/* The same outside of a call. */
static void linear(const Linear *l, const float *x, int rows, float *y, float *room)
{
    const Products p = {.linears = {l}, .y = {y}, .x = x, .room = room, .count = 1, .form = form_of(l, rows), .rows = rows};
    if (p.form != AS_IS)
        share(rows, prepare_part, &p);
    share(units_of(l->out), products_part, &p);
}

/* y (rows, out) = x (rows, in) @ weights' + bias. `dealt` has room for rows + 1 of x. Widths divide by 64 (in) and 2 (out). */
void strop_linear(const Linear *l, const float *x, int rows, float *y, float *dealt, int threads)
{
    begin_call(threads);
    linear(l, x, rows, y, dealt);
    end_call();
}

/* Which integer products there are: `Integers` of library.py. */
int32_t strop_integers(void)
{
    return INTEGERS;
}

typedef struct {
    const Linear *linear;
    float *weights;
    int first;
} Unpacking;

static void unpack_part(const void *work, int first, int end)
{
    const Unpacking *u = work;
    const Linear *l = u->linear;
    for (int o = first; o < end; o++) {
        float *row = u->weights + (size_t)o * l->in;
        const float *values = unpacked(l, u->first + o, 0, l->in, row);
        if (values != row)
            memcpy(row, values, sizeof(float) * l->in);
        for (int block = 0; l->kind == NF4 && block < l->in; block += BLOCK) {
            float dealt[BLOCK];
            memcpy(dealt, row + block, sizeof dealt);
            deal(dealt, BLOCK, row + block); /* a transposition undoes itself */
        }
    }
}

/* Write the weights of `count` outputs from `first` on as float32, in their true order, for products of so many rows that
 * a matrix library wins. */
void strop_unpack(const Linear *l, int first, int count, float *weights, int threads)
{
    const Unpacking unpacking = {l, weights, first};
    begin_call(threads);
    share(count, unpack_part, &unpacking);
    end_call();
}

/* ---- adapters -------------------------------------------------------------------------------------------------- */

/* Neighbours with the same adapter, up to four, so that it is read once for them. */
typedef struct {
    int32_t first, count;
} Group;

/* low (rows, MOST_RANKS) = x (rows, in) @ down for up to four rows, eight or sixteen ranks at a time. */
static inline __attribute__((always_inline)) void low_tile(
    const Lora *lora, const float *x, int in, float *low, int first, int registers, int rows)
{
    const int rank = lora->rank;
    f8 sums[TILE_ROWS][2];
    for (int r = 0; r < rows; r++)
        for (int part = 0; part < registers; part++)
            sums[r][part] = (f8){0};
    for (int i = 0; i < in; i++)
        for (int part = 0; part < registers; part++) {
            const f8 down = LOAD(f8, lora->down + (size_t)i * rank + first + 8 * part);
            for (int r = 0; r < rows; r++)
                sums[r][part] += x[(size_t)r * in + i] * down;
        }
    for (int r = 0; r < rows; r++)
        for (int part = 0; part < registers; part++)
            STORE(low + (size_t)r * MOST_RANKS + first + 8 * part, sums[r][part]);
}

/* y (rows, out) += low @ up, the outputs `from` up to `to`. */
static inline __attribute__((always_inline)) void up_tile(
    const Lora *lora, const float *low, float *y, int out, int from, int to, int first, int registers, int rows)
{
    for (int o = from; o < to; o += 8) {
        f8 sums[TILE_ROWS];
        for (int r = 0; r < rows; r++)
            sums[r] = LOAD(f8, y + (size_t)r * out + o);
        for (int k = first; k < first + 8 * registers; k++) {
            const f8 up = LOAD(f8, lora->up + (size_t)k * out + o);
            for (int r = 0; r < rows; r++)
                sums[r] += low[(size_t)r * MOST_RANKS + k] * up;
        }
        for (int r = 0; r < rows; r++)
            STORE(y + (size_t)r * out + o, sums[r]);
    }
}

/* Whether eight ranks and eight outputs at a time come out even. */
static inline int in_eights(const Lora *lora, int out)
{
    return lora->rank % 8 == 0 && out % 8 == 0;
}

/* A tile by its number of rows, with 16 ranks at a time while there are as many. */
#define TILES(tile, ...) \
    for (int first = 0; first < lora->rank; first += 16) { \
        const int whole = lora->rank - first >= 16; \
        switch (rows) { \
        case 1: whole ? tile(__VA_ARGS__, first, 2, 1) : tile(__VA_ARGS__, first, 1, 1); break; \
        case 2: whole ? tile(__VA_ARGS__, first, 2, 2) : tile(__VA_ARGS__, first, 1, 2); break; \
        case 3: whole ? tile(__VA_ARGS__, first, 2, 3) : tile(__VA_ARGS__, first, 1, 3); break; \
        default: whole ? tile(__VA_ARGS__, first, 2, TILE_ROWS) : tile(__VA_ARGS__, first, 1, TILE_ROWS); \
        } \
    }

static void lower(const Lora *lora, const float *x, int in, int out, int rows, float *low)
{
    if (in_eights(lora, out)) {
        TILES(low_tile, lora, x, in, low)
        return;
    }
    for (int r = 0; r < rows; r++, x += in, low += MOST_RANKS) {
        memset(low, 0, sizeof(float) * lora->rank);
        for (int i = 0; i < in; i++)
            for (int k = 0; k < lora->rank; k++)
                low[k] += x[i] * lora->down[(size_t)i * lora->rank + k];
    }
}

static void add_low(const Lora *lora, const float *low, int out, int from, int to, int rows, float *y)
{
    if (in_eights(lora, out)) {
        TILES(up_tile, lora, low, y, out, from, to)
        return;
    }
    for (int r = 0; r < rows; r++, low += MOST_RANKS, y += out)
        for (int k = 0; k < lora->rank; k++)
            for (int o = from; o < to; o++)
                y[o] += low[k] * lora->up[(size_t)k * out + o];
}

/* ---- small operations ------------------------------------------------------------------------------------------ */

/* e^x by 2^n * p(f), a polynomial on |f| <= ln 2 / 2 (Cephes' coefficients); relative error about 1e-7. */
static inline f8 exp8(f8 x)
{
    const f8 rounder = (f8){0} + 12582912.0f; /* 1.5 * 2^23: adding it rounds to a whole number */
    const f8 low = (f8){0} - 87.0f, high = (f8){0} + 88.0f;
    x = choose(x < low, low, x);
    x = choose(x > high, high, x);
    const f8 shifted = x * 1.44269504088896341f + rounder;
    const f8 n = shifted - rounder;
    const f8 f = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    f8 p = f * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * f + 8.3334519073e-3f;
    p = p * f + 4.1665795894e-2f;
    p = p * f + 1.6666665459e-1f;
    p = p * f + 5.0000001201e-1f;
    p = p * f * f + f + 1.0f;
    return p * (f8)((__builtin_convertvector(n, i8) + 127) << 23);
}

static void rms_norm(const float *x, const float *weight, int count, float eps, float *y)
{
    f8 squares = {0};
    for (int i = 0; i < count; i += 8)
        squares += LOAD(f8, x + i) * LOAD(f8, x + i);
    const float scale = 1.0f / sqrtf(sum8(squares) / count + eps);
    for (int i = 0; i < count; i += 8)
        STORE(y + i, LOAD(f8, x + i) * scale * LOAD(f8, weight + i));
}

/* x += scale * norm(y), one row; without a norm x += scale * y. */
static void add_residual(const Model *m, float *x, float *y, const float *norm)
{
    if (norm)
        rms_norm(y, norm, m->hidden, m->eps, y);
    for (int i = 0; i < m->hidden; i++)
        x[i] += m->residual_scale * y[i];
}

/* Rotary position embedding with halves as pairs (https://arxiv.org/abs/2104.09864, in the Llama layout). */
static void rotate(float *head, const float *cosines, const float *sines, int dim)
{
    for (int i = 0; i < dim / 2; i++) {
        const float a = head[i], b = head[i + dim / 2];
        head[i] = a * cosines[i] - b * sines[i];
        head[i + dim / 2] = b * cosines[i + dim / 2] + a * sines[i + dim / 2];
    }
}

static void place_head(const Model *m, const Layer *layer, float *head, const float *norm, int position)
{
    const size_t row = (size_t)position * m->head_dim;
    if (norm)
        rms_norm(head, norm, m->head_dim, m->eps, head);
    if (layer->cosines)
        rotate(head, layer->cosines + row, layer->sines + row, m->head_dim);
}

/* gate = activation(gate) * up */
static void gated(float *gate, const float *up, int count, int activation)
{
    for (int i = 0; i < count; i += 8) {
        const f8 x = LOAD(f8, gate + i);
        /* gelu's tanh form is x * sigmoid(2 * sqrt(2 / pi) * (x + 0.044715 x^3)) */
        f8 inner = x;
        if (activation == GELU_TANH)
            inner = 1.5957691216057308f * (x + 0.044715f * x * x * x);
        STORE(gate + i, x / (1.0f + exp8(-inner)) * LOAD(f8, up + i));
    }
}

/* ---- the cache ------------------------------------------------------------------------------------------------- */

#define LARGEST_HALF 65504.0f

/* Eight float16 numbers as float32, and eight of those as the nearest float16, of two the even one; what is larger than any
 * becomes the largest. */
#if defined(__F16C__)
static inline f8 widen_halves(const uint16_t *halves)
{
    return (f8)_mm256_cvtph_ps(_mm_loadu_si128((const void *)halves));
}

static inline void store_halves(uint16_t *halves, const float *values)
{
    const __m256 limit = _mm256_set1_ps(LARGEST_HALF), least = _mm256_set1_ps(-LARGEST_HALF);
    const __m256 bounded = _mm256_max_ps(_mm256_min_ps(_mm256_loadu_ps(values), limit), least);
    _mm_storeu_si128((void *)halves, _mm256_cvtps_ph(bounded, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
#else
/* The exponent's bias grows by 112, also for numbers below the least normal one; there is nothing infinite. */
static inline f8 widen_halves(const uint16_t *halves)
{
    const u8 bits = __builtin_convertvector(LOAD(h8, halves), u8);
    const f8 magnitude = (f8)((bits & 0x7fff) << 13) * 0x1p112f;
    return (f8)((u8)magnitude | (bits & 0x8000) << 16);
}

static inline void store_halves(uint16_t *halves, const float *values)
{
    for (int i = 0; i < 8; i++) {
        uint32_t bits;
        memcpy(&bits, values + i, sizeof bits);
        const uint16_t sign = bits >> 16 & 0x8000;
        const float size = fabsf(values[i]) < LARGEST_HALF ? fabsf(values[i]) : LARGEST_HALF;
        memcpy(&bits, &size, sizeof bits);
        if (size < 0x1p-14f) /* adding 2^23 rounds to a whole number */
            halves[i] = sign | (uint16_t)((size * 0x1p24f + 0x1p23f) - 0x1p23f);
        else
            halves[i] = sign | (uint16_t)((bits - (112u << 23) + 0xfff + (bits >> 13 & 1)) >> 13);
    }
}
#endif

/* Eight numbers of the cache from `place` on. */
static inline f8 cached(const void *numbers, size_t place, int halves)
{
    return halves ? widen_halves((const uint16_t *)numbers + place) : LOAD(f8, (const float *)numbers + place);
}

static void store_cached(void *numbers, size_t place, const float *values, int count, int halves)
{
    if (!halves)
        memcpy((float *)numbers + place, values, sizeof(float) * count);
    else
        for (int i = 0; i < count; i += 8)
            store_halves((uint16_t *)numbers + place + i, values + i);
}

/* ---- attention ------------------------------------------------------------------------------------------------- */

static float cap(float value, float limit)
{
    return limit > 0 ? limit * tanhf(value / limit) : value;
}

/* Turn scores (count) into weights that sum to one; `scores` has room for a multiple of eight. */
static void softmax(float *scores, int count)
{
    for (int j = count; j % 8; j++)
        scores[j] = -INFINITY;
    f8 most = LOAD(f8, scores), sums = {0};
    for (int j = 8; j < count; j += 8) {
        const f8 next = LOAD(f8, scores + j);
        most = choose(next > most, next, most);
    }
    float highest = most[0];
    for (int lane = 1; lane < 8; lane++)
        highest = most[lane] > highest ? most[lane] : highest;
    for (int j = 0; j < count; j += 8) {
        const f8 shifted = LOAD(f8, scores + j) - highest;
        STORE(scores + j, exp8(shifted));
    }
    for (int j = count; j % 8; j++)
        scores[j] = 0;
    for (int j = 0; j < count; j += 8)
        sums += LOAD(f8, scores + j);
    const float scale = 1.0f / sum8(sums);
    for (int j = 0; j < count; j++)
        scores[j] *= scale;
}

/* The sums of eight registers, side by side. */
static inline f8 sums_of_eight(const f8 *v)
{
    f8 pairs[4], fours[2];
    for (int i = 0; i < 4; i++)
        pairs[i] = SHUFFLE(v[2 * i], v[2 * i + 1], 0, 2, 8, 10, 4, 6, 12, 14)
                   + SHUFFLE(v[2 * i], v[2 * i + 1], 1, 3, 9, 11, 5, 7, 13, 15);
    for (int i = 0; i < 2; i++)
        fours[i] = SHUFFLE(pairs[2 * i], pairs[2 * i + 1], 0, 2, 8, 10, 4, 6, 12, 14)
                   + SHUFFLE(pairs[2 * i], pairs[2 * i + 1], 1, 3, 9, 11, 5, 7, 13, 15);
    return SHUFFLE(fours[0], fours[1], 0, 1, 2, 3, 8, 9, 10, 11)
           + SHUFFLE(fours[0], fours[1], 4, 5, 6, 7, 12, 13, 14, 15);
}

/* scores (count) = keys (count, dim) from `place` on @ q * scale, eight keys at a time. */
static inline __attribute__((always_inline)) void score_keys(
    const float *q, const void *keys, size_t place, int count, int dim, float scale, int halves, float *scores)
{
    int j = 0;
    for (; j + 8 <= count; j += 8) {
        f8 sums[8] = {{0}};
        for (int i = 0; i < dim; i += 8) {
            const f8 part = LOAD(f8, q + i);
            for (int k = 0; k < 8; k++)
                sums[k] += part * cached(keys, place + (size_t)(j + k) * dim + i, halves);
        }
        STORE(scores + j, sums_of_eight(sums) * scale);
    }
    for (; j < count; j++) {
        f8 total = {0};
        for (int i = 0; i < dim; i += 8)
            total += LOAD(f8, q + i) * cached(keys, place + (size_t)j * dim + i, halves);
        scores[j] = sum8(total) * scale;
    }
}

/* out (heads, dim) = weights (heads, stride) @ values (count, dim) from `place` on, for `lanes` times eight columns from `d`
 * on. */
static inline __attribute__((always_inline)) void weigh(
    const float *weights, size_t stride, const void *values, size_t place, int count, int dim, int d, int lanes,
    int heads, int halves, float *out)
{
    f8 sums[HEADS_AT_ONCE][LANES];
    for (int h = 0; h < heads; h++)
        for (int lane = 0; lane < lanes; lane++)
            sums[h][lane] = (f8){0};
    for (int j = 0; j < count; j++)
        for (int lane = 0; lane < lanes; lane++) {
            const f8 value = cached(values, place + (size_t)j * dim + d + 8 * lane, halves);
            for (int h = 0; h < heads; h++)
                sums[h][lane] += weights[h * stride + j] * value;
        }
    for (int h = 0; h < heads; h++)
        for (int lane = 0; lane < lanes; lane++)
            STORE(out + h * dim + d + 8 * lane, sums[h][lane]);
}

static inline __attribute__((always_inline)) void weigh_values(
    const float *weights, size_t stride, const void *values, size_t place, int count, int dim, int heads, int halves,
    float *out)
{
    for (int d = 0, lanes; d < dim; d += 8 * lanes) {
        lanes = dim - d >= 8 * LANES ? LANES : dim - d >= 32 ? 4 : 1;
#define HEADS(number) \
    case number: \
        if (lanes == LANES) \
            weigh(weights, stride, values, place, count, dim, d, LANES, number, halves, out); \
        else if (lanes == 4) \
            weigh(weights, stride, values, place, count, dim, d, 4, number, halves, out); \
        else \
            weigh(weights, stride, values, place, count, dim, d, 1, number, halves, out); \
        break
        switch (heads) {
            HEADS(1);
            HEADS(2);
            HEADS(3);
        }
#undef HEADS
    }
}

/* The query heads of one row that share a key head, over `count` keys and values from `place` on. */
static inline __attribute__((always_inline)) void attend(
    const Model *m, const Layer *layer, const float *q, size_t place, int count, int halves, float *scores, float *out)
{
    const int dim = m->head_dim, group = m->heads / m->kv_heads;
    for (int g = 0; g < group; g++) {
        float *row = scores + (size_t)g * m->context;
        score_keys(q + g * dim, layer->keys, place, count, dim, m->attention_scale, halves, row);
        if (m->attention_cap > 0)
            for (int j = 0; j < count; j++)
                row[j] = cap(row[j], m->attention_cap);
        softmax(row, count);
    }
    for (int g = 0; g < group; g += HEADS_AT_ONCE) {
        const int heads = group - g < HEADS_AT_ONCE ? group - g : HEADS_AT_ONCE;
        const float *weights = scores + (size_t)g * m->context;
        weigh_values(weights, m->context, layer->values, place, count, dim, heads, halves, out + g * dim);
    }
}

/* ---- the step -------------------------------------------------------------------------------------------------- */

/* A step and the phase that it is in. */
typedef struct {
    const Model *m;
    Workspace *work;
    const int32_t *tokens, *positions, *cache_rows;
    const Lora *const *adapters;
    int rows, groups, adapted; /* adapted: whether any row has an adapter */
    int layer;
    int which, place;      /* the first of the projections in `products`, and its place among those of this input */
    int skipped;           /* rows before those of `products` */
    const float *norm;     /* of this input */
    int residual;          /* whether `mixed` is still to be added, */
    const float *residual_norm; /* and its norm */
    Products products;
} Step;

static inline Group group_of(const Step *s, int index)
{
    return ((const Group *)s->work->groups)[index];
}

static void find_groups(Step *s)
{
    Group *groups = (Group *)s->work->groups;
    for (int r = 0, next; r < s->rows; r = next) {
        for (next = r + 1; next < s->rows && next - r < TILE_ROWS && s->adapters[next] == s->adapters[r];)
            next++;
        groups[s->groups++] = (Group){r, next - r};
        s->adapted |= s->adapters[r] != NULL;
    }
}

/* The update of a projection for a group's rows, or NULL. */
static inline const Lora *lora_of(const Step *s, Group group, int which)
{
    const Lora *adapter = s->adapters[group.first];
    const Lora *lora = adapter ? adapter + s->layer * PROJECTIONS + which : NULL;
    return lora && lora->rank ? lora : NULL;
}

static inline float *low_of(const Step *s, int place, Group group)
{
    return s->work->low + ((size_t)place * s->rows + group.first) * MOST_RANKS;
}

/* Add the update of projection `which`, the one at `place` of its input, to some outputs of a group's rows. */
static void add_update(const Step *s, int which, int place, Group group, int from, int to, float *y)
{
    const Lora *lora = lora_of(s, group, which);
    const int out = s->m->layers[s->layer].projections[which].out;
    if (lora)
        add_low(lora, low_of(s, place, group), out, from, to, group.count, y + (size_t)group.first * out);
}

/* Rows. */
static void embed_part(const void *work, int first, int end)
{
    const Step *s = work;
    const Model *m = s->m;
    for (int r = first; r < end; r++) {
        float *x = s->work->x + (size_t)r * m->hidden;
        const float *row = unpacked(&m->embedding, s->tokens[r], 0, m->hidden, x);
        for (int i = 0; i < m->hidden; i++)
            x[i] = row[i] * m->embedding_scale;
    }
}

/* Rows: what the last block wrote is added, and the next block's input made of it. */
static void normed_part(const void *work, int first, int end)
{
    const Step *s = work;
    const Model *m = s->m;
    for (int r = first; r < end; r++) {
        const size_t row = (size_t)(s->skipped + r) * m->hidden;
        if (s->residual)
            add_residual(m, s->work->x + row, s->work->mixed + row, s->residual_norm);
        rms_norm(s->work->x + row, s->norm, m->hidden, m->eps, s->work->normed + (size_t)r * m->hidden);
    }
    prepare_part(&s->products, first, end);
}

static void input_part(const void *work, int first, int end)
{
    prepare_part(&((const Step *)work)->products, first, end);
}

/* First a group's x @ down of each projection, then the products. */
static void project_part(const void *work, int first, int end)
{
    const Step *s = work;
    const Products *p = &s->products;
    const int lows = s->adapted ? s->groups * p->count : 0;
    for (int unit = first; unit < end && unit < lows; unit++) {
        const int i = unit / s->groups;
        const Group group = group_of(s, unit % s->groups);
        const Linear *l = p->linears[i];
        const Lora *lora = lora_of(s, group, s->which + i);
        if (lora)
            lower(
                lora, p->x + (size_t)group.first * l->in, l->in, l->out, group.count, low_of(s, s->place + i, group));
    }
    products_part(p, first - lows, end - lows);
}

/* Projections of one input, from `which` on, without what their updates add. `input` is how its rows come about. */
static void project(Step *s, Part input, int which, int count, const float *x, float *const *y)
{
    const Linear *linears = s->m->layers[s->layer].projections;
    for (int place = 0; place < count; input = input_part) {
        Products p = {.x = x, .room = s->work->dealt, .form = form_of(&linears[which], s->rows), .rows = s->rows};
        int units = 0;
        s->which = which, s->place = place;
        for (; place < count && form_of(&linears[which], s->rows) == p.form; which++, place++, p.count++) {
            p.linears[p.count] = &linears[which];
            p.y[p.count] = y[place];
            units += units_of(linears[which].out);
        }
        s->products = p;
        if (input != input_part || p.form != AS_IS)
            share(s->rows, input, s);
        share(units + (s->adapted ? s->groups * p.count : 0), project_part, s);
    }
}

/* A group's query, key or value heads: updates, norms, rotary embedding; new keys and values go to the cache. */
static void heads_part(const void *work, int first, int end)
{
    const Step *s = work;
    const Model *m = s->m;
    const Layer *layer = &m->layers[s->layer];
    const int dim = m->head_dim, all = m->heads + 2 * m->kv_heads;
    for (int unit = first; unit < end; unit++) {
        const Group group = group_of(s, unit / all);
        int head = unit % all, which = Q, heads = m->heads;
        for (; head >= heads; heads = m->kv_heads, which++)
            head -= heads;
        float *y = which == Q ? s->work->q : which == K ? s->work->k : s->work->v;
        add_update(s, which, which - Q, group, head * dim, (head + 1) * dim, y);
        for (int r = group.first; r < group.first + group.count; r++) {
            float *values = y + ((size_t)r * heads + head) * dim;
            if (which != V)
                place_head(m, layer, values, which == Q ? layer->q_norm : layer->k_norm, s->positions[r]);
            if (which == Q)
                continue;
            const size_t row = (size_t)s->cache_rows[r] * m->kv_heads + head;
            const size_t place = (row * m->context + s->positions[r]) * dim;
            store_cached(which == K ? layer->keys : layer->values, place, values, dim, m->halves);
        }
    }
}

/* Key heads of all rows; head by head, so that a prompt's keys stay in the processor's cache. */
static void attend_part(const void *work, int first, int end)
{
    const Step *s = work;
    const Model *m = s->m;
    const Layer *layer = &m->layers[s->layer];
    const int dim = m->head_dim, group = m->heads / m->kv_heads;
    for (int unit = first; unit < end; unit++) {
        const int r = unit % s->rows, head = unit / s->rows, position = s->positions[r];
        const size_t cache = ((size_t)s->cache_rows[r] * m->kv_heads + head) * m->context * dim;
        const int hidden_by_window = layer->window ? position + 1 - layer->window : 0;
        const int start = hidden_by_window > 0 ? hidden_by_window : 0, count = position + 1 - start;
        const size_t place = cache + (size_t)start * dim, query = ((size_t)r * m->heads + (size_t)head * group) * dim;
        float *scores = s->work->scores + (size_t)sharer * group * m->context;
        if (m->halves)
            attend(m, layer, s->work->q + query, place, count, 1, scores, s->work->attended + query);
        else
            attend(m, layer, s->work->q + query, place, count, 0, scores, s->work->attended + query);
    }
}

/* How many STRIPEs of outputs there are, of which each group is a unit. */
static inline int stripes_of(int out)
{
    return (out + STRIPE - 1) / STRIPE;
}

typedef struct {
    int from, to;
} Range;

/* The outputs of `unit` and of those behind it, before `end`, that are of the same group: weights are read in long runs. */
static inline Range stripes_together(int unit, int end, int out, int *next)
{
    const int stripes = stripes_of(out), at = unit % stripes, left = stripes - at;
    const int count = end - unit < left ? end - unit : left;
    *next = unit + count;
    return (Range){at * STRIPE, at + count < stripes ? (at + count) * STRIPE : out};
}

/* Stripes: the update of the projection that writes `mixed`. */
static void mixed_part(const void *work, int first, int end)
{
    const Step *s = work;
    const int out = s->m->hidden, stripes = stripes_of(out);
    for (int unit = first, next; unit < end; unit = next) {
        const Range range = stripes_together(unit, end, out, &next);
        add_update(s, s->which, 0, group_of(s, unit / stripes), range.from, range.to, s->work->mixed);
    }
}

/* Stripes: the updates of gate and up, and gate = activation(gate) * up. */
static void gate_part(const void *work, int first, int end)
{
    const Step *s = work;
    const int out = s->m->intermediate, stripes = stripes_of(out);
    for (int unit = first, next; unit < end; unit = next) {
        const Group group = group_of(s, unit / stripes);
        const Range range = stripes_together(unit, end, out, &next);
        add_update(s, GATE, 0, group, range.from, range.to, s->work->gate);
        add_update(s, UP, 1, group, range.from, range.to, s->work->up);
        for (int r = group.first; r < group.first + group.count; r++) {
            const size_t at = (size_t)r * out + range.from;
            gated(s->work->gate + at, s->work->up + at, range.to - range.from, s->m->activation);
        }
    }
}

/* The next input of a block is norm(x), once `mixed` is added to x. */
static void project_normed(Step *s, const float *norm, int which, int count, float *const *y)
{
    s->norm = norm;
    project(s, normed_part, which, count, s->work->normed, y);
}

/* Write `mixed`, which is added to x with the next norm. */
static void project_mixed(Step *s, int which, const float *x, const float *norm)
{
    project(s, input_part, which, 1, x, &s->work->mixed);
    if (s->adapted)
        share(s->groups * stripes_of(s->m->hidden), mixed_part, s);
    s->residual = 1;
    s->residual_norm = norm;
}

static void run_layer(Step *s)
{
    const Model *m = s->m;
    const Layer *layer = &m->layers[s->layer];
    Workspace *work = s->work;
    project_normed(s, layer->attention_in, Q, 3, (float *[]){work->q, work->k, work->v});
    /* First all new keys: a prompt's later tokens see the earlier ones. */
    share(s->groups * (m->heads + 2 * m->kv_heads), heads_part, s);
    share(s->rows * m->kv_heads, attend_part, s);
    project_mixed(s, O, work->attended, layer->attention_out);
    project_normed(s, layer->mlp_in, GATE, 2, (float *[]){work->gate, work->up});
    share(s->groups * stripes_of(m->intermediate), gate_part, s);
    project_mixed(s, DOWN, work->gate, layer->mlp_out);
}

typedef struct {
    const Model *m;
    float *logits;
    size_t count;
} Logits;

static void logits_part(const void *work, int first, int end)
{
    const Logits *l = work;
    for (size_t i = (size_t)first * STRIPE; i < (size_t)end * STRIPE && i < l->count; i++)
        l->logits[i] = cap(l->logits[i] * l->m->logit_scale, l->m->logit_cap);
}

static void run_head(Step *s, int keep, float *logits)
{
    const Model *m = s->m;
    const Linear *head = &m->head;
    s->norm = m->final_norm;
    s->skipped = s->rows - keep;
    s->products = (Products){
        .linears = {head}, .y = {logits}, .x = s->work->normed, .room = s->work->dealt, .count = 1,
        .form = form_of(head, keep), .rows = keep};
    share(keep, normed_part, s);
    share(units_of(head->out), products_part, &s->products);
    const Logits scaled = {m, logits, (size_t)keep * head->out};
    if (m->logit_scale != 1.0f || m->logit_cap > 0)
        share((int)((scaled.count + STRIPE - 1) / STRIPE), logits_part, &scaled);
}

/* Run one token for each of `rows` rows and write the last `keep` rows' logits (keep, vocabulary).
 *
 * tokens, positions, cache_rows: (rows); the keys and values before `positions` are in the cache, or come earlier here.
 * adapters: (rows) pointers to layer_count * 7 updates, or NULL for the bare base. */
void strop_decode(
    const Model *m, const int32_t *tokens, const int32_t *positions, const int32_t *cache_rows,
    const Lora *const *adapters, int rows, int keep, Workspace *work, float *logits)
{
    Step step = {
        .m = m, .work = work, .tokens = tokens, .positions = positions, .cache_rows = cache_rows, .adapters = adapters,
        .rows = rows};
    find_groups(&step);
    begin_call(m->threads);
    share(rows, embed_part, &step);
    for (; step.layer < m->layer_count; step.layer++)
        run_layer(&step);
    if (keep)
        run_head(&step, keep, logits);
    end_call();
}
