/* Products by what a processor multiplies faster than float32, for weights that are marked `fast`.
 *
 * NF4 weights: in 16-bit integers. The codebook becomes whole numbers of 12 bits, the inputs of 15 bits with one scale per
 * block of 64, as the weights have. A block's products then fit an int32 whatever they are (64 * 2047 * 16383 < 2^31);
 * blocks are added up in float32. Rounding to 8 bits instead would be twice as fast, and changes what the model says
 * (EXPERIMENTS.md). Few rows: one output at a time, straight from the nibbles. Many rows (AVX512-VNNI): 16 outputs are
 * unpacked to the first-level cache, in pairs of inputs, and eight rows at a time are multiplied with them.
 *
 * bfloat16 weights of more than four rows (AVX512-BF16): the weights as they are, each input as the sum of two bfloat16 numbers.
 */

/* round(CODE * CODE_SCALE): of all factors up to 2047 the one that rounds least (root mean square 7e-5, largest 1.2e-4). */
#define CODE_SCALE 1722.07f
enum { INPUT_LEVELS = 16383, FETCH_AHEAD = 2048 };

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define INTEGERS 2
enum { FEW_ROWS = 3 };
#elif defined(__AVX2__) && defined(__FMA__)
#define INTEGERS 1
enum { FEW_ROWS = 4 };
#else
#define INTEGERS 0
enum { FEW_ROWS = 0 };
#endif

#if INTEGERS
typedef int16_t s8 __attribute__((vector_size(16), aligned(2), may_alias));

static const int16_t CODE16[32] __attribute__((aligned(64))) = { /* twice: the fifth bit of an index is ignored */
    -1722, -1199, -904, -680, -490, -318, -157, 0, 137, 277, 424, 582, 759, 969, 1245, 1722,
    -1722, -1199, -904, -680, -490, -318, -157, 0, 137, 277, 424, 582, 759, 969, 1245, 1722,
};

/* Inputs as whole numbers, and what one of them stands for, the codebook's scale included: (rows, blocks). */
typedef struct {
    int16_t *values;
    float *scales;
} Rounded;

/* One block of 64 inputs as whole numbers in their own order; returns their scale. */
static inline float round_block(const float *x, int16_t *values)
{
    f8 largest = {0};
    for (int i = 0; i < BLOCK; i += 8) {
        const f8 magnitude = (f8)(LOAD(u8, x + i) & 0x7fffffffu);
        largest = choose(magnitude > largest, magnitude, largest);
    }
    float most = 0;
    for (int lane = 0; lane < 8; lane++)
        most = largest[lane] > most ? largest[lane] : most;
    const float factor = most > 1e-30f ? INPUT_LEVELS / most : 0.0f;
    const f8 rounder = (f8){0} + 12582912.0f; /* 1.5 * 2^23: the sum's lowest bits are the whole number */
    for (int i = 0; i < BLOCK; i += 8) {
        const f8 shifted = LOAD(f8, x + i) * factor + rounder;
        *(s8 *)(values + i) = __builtin_convertvector((i8)shifted - 0x4B400000, s8);
    }
    return most / (INPUT_LEVELS * CODE_SCALE);
}

/* ---- few rows -------------------------------------------------------------------------------------------------- */

#if INTEGERS == 2
/* The first weight of each byte, then the second of each: 2 x 32 numbers. */
typedef struct {
    __m512i parts[2];
} Codes;

static inline int dealt_place(int weight)
{
    return weight / 2 + weight % 2 * 32;
}

static inline Codes block_codes(const uint8_t *packed)
{
    const __m512i table = _mm512_load_si512(CODE16), bytes = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const void *)packed));
    return (Codes){{
        _mm512_permutexvar_epi16(_mm512_srli_epi16(bytes, 4), table),
        _mm512_permutexvar_epi16(bytes, table),
    }};
}

typedef __m512 Sums;

static inline Sums add_block(Sums total, Codes codes, const int16_t *x, float scale)
{
    __m512i sum = _mm512_dpwssd_epi32(_mm512_setzero_si512(), codes.parts[0], _mm512_loadu_si512(x));
    sum = _mm512_dpwssd_epi32(sum, codes.parts[1], _mm512_loadu_si512(x + 32));
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), _mm512_set1_ps(scale), total);
}

static inline float sum_of(Sums total)
{
    return _mm512_reduce_add_ps(total);
}
#else
/* The first weight of bytes 0-7 and 16-23, that of 8-15 and 24-31, then the second weights likewise: 4 x 16 numbers. */
typedef struct {
    __m256i parts[4];
} Codes;

static inline int dealt_place(int weight)
{
    const int byte = weight / 2;
    return weight % 2 * 32 + byte / 8 % 2 * 16 + byte / 16 * 8 + byte % 8;
}

/* The lower or the upper bytes of the 16 numbers, in both halves of a register. */
static inline __m256i code_bytes(int shift)
{
    const __m256i words = _mm256_load_si256((const void *)CODE16);
    const __m256i bytes = _mm256_and_si256(shift ? _mm256_srli_epi16(words, 8) : words, _mm256_set1_epi16(255));
    const __m256i packed = _mm256_packus_epi16(bytes, bytes);
    return _mm256_permute4x64_epi64(packed, 0x88);
}

static inline Codes block_codes(const uint8_t *packed)
{
    const __m256i lower = code_bytes(0), upper = code_bytes(8), nibble = _mm256_set1_epi8(15);
    const __m256i bytes = _mm256_loadu_si256((const void *)packed);
    const __m256i indices[2] = {
        _mm256_and_si256(_mm256_srli_epi16(bytes, 4), nibble), _mm256_and_si256(bytes, nibble)};
    Codes codes;
    for (int i = 0; i < 2; i++) {
        const __m256i low = _mm256_shuffle_epi8(lower, indices[i]), high = _mm256_shuffle_epi8(upper, indices[i]);
        codes.parts[2 * i] = _mm256_unpacklo_epi8(low, high);
        codes.parts[2 * i + 1] = _mm256_unpackhi_epi8(low, high);
    }
    return codes;
}

typedef __m256 Sums;

static inline Sums add_block(Sums total, Codes codes, const int16_t *x, float scale)
{
    __m256i sum = _mm256_setzero_si256();
    for (int i = 0; i < 4; i++) {
        const __m256i values = _mm256_loadu_si256((const void *)(x + 16 * i));
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(codes.parts[i], values));
    }
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), _mm256_set1_ps(scale), total);
}

static inline float sum_of(Sums total)
{
    return sum8((f8)total);
}
#endif

/* Round the rows `first` up to `end`, their blocks in the order of `block_codes`. */
static void round_dealt(const float *x, int first, int end, int n, const Rounded *rounded)
{
    for (size_t block = (size_t)first * n / BLOCK; block < (size_t)end * n / BLOCK; block++) {
        int16_t values[BLOCK];
        rounded->scales[block] = round_block(x + block * BLOCK, values);
        for (int i = 0; i < BLOCK; i++)
            rounded->values[block * BLOCK + dealt_place(i)] = values[i];
    }
}

static inline __attribute__((always_inline)) void integer_dots(
    const Linear *l, int o, const Rounded *x, int rows, float *y)
{
    const int n = l->in, blocks = n / BLOCK;
    const uint8_t *packed = (const uint8_t *)l->data + (size_t)o * n / 2;
    const float *scales = l->scales + (size_t)o * blocks;
    Sums totals[FEW_ROWS] = {{0}};
    for (int b = 0; b < blocks; b++) {
        if (b % 2 == 0) /* a line of 64 bytes holds two blocks */
            __builtin_prefetch(packed + b * BLOCK / 2 + FETCH_AHEAD);
        const Codes codes = block_codes(packed + b * BLOCK / 2);
        for (int r = 0; r < rows; r++) {
            const size_t at = (size_t)r * blocks + b;
            totals[r] = add_block(totals[r], codes, x->values + at * BLOCK, scales[b] * x->scales[at]);
        }
    }
    for (int r = 0; r < rows; r++)
        y[(size_t)r * l->out + o] = sum_of(totals[r]);
}

static void integer_output(const Linear *l, int o, const Rounded *x, int rows, float *y)
{
    switch (rows) {
    case 1: integer_dots(l, o, x, 1, y); break;
    case 2: integer_dots(l, o, x, 2, y); break;
    case 3: integer_dots(l, o, x, 3, y); break;
#if INTEGERS == 1
    case 4: integer_dots(l, o, x, 4, y); break;
#endif
    }
}

/* ---- many rows ------------------------------------------------------------------------------------------------- */

#if INTEGERS == 2
/* A group of outputs fills a register; so many of their inputs are unpacked at a time (16 KB); rows of a tile. */
enum { GROUP = 16, CHUNK = 512, TILE = 8 };

/* Round the rows `first` up to `end`. A tile's rows lie beside each other, two inputs of each at a time:
 * (tiles, n / 2, TILE, 2). */
static void round_tiled(const float *x, int first, int end, int n, const Rounded *rounded)
{
    for (int r = first; r < end; r++)
        for (int b = 0; b < n / BLOCK; b++) {
            int32_t pairs[BLOCK / 2];
            rounded->scales[(size_t)r * n / BLOCK + b] = round_block(x + (size_t)r * n + b * BLOCK, (int16_t *)pairs);
            int32_t *tile = (int32_t *)rounded->values + ((size_t)(r / TILE) * n + b * BLOCK) / 2 * TILE + r % TILE;
            for (int pair = 0; pair < BLOCK / 2; pair++)
                tile[pair * TILE] = pairs[pair];
        }
}

/* Eight words of 16 outputs' nibbles, transposed: part j holds the words j. */
static inline void transpose_block(const uint8_t *packed, size_t stride, __m512i *parts)
{
    const __m512i firsts = _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13);
    const __m512i lasts = _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15);
    __m512i rows[8], twos[8], fours[8];
    for (int r = 0; r < 8; r++) {
        const __m256i low = _mm256_loadu_si256((const void *)(packed + r * stride));
        const __m256i high = _mm256_loadu_si256((const void *)(packed + (r + 8) * stride));
        rows[r] = _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
    }
    for (int r = 0; r < 8; r += 2) {
        twos[r] = _mm512_unpacklo_epi32(rows[r], rows[r + 1]);
        twos[r + 1] = _mm512_unpackhi_epi32(rows[r], rows[r + 1]);
    }
    for (int r = 0; r < 8; r += 4)
        for (int i = 0; i < 2; i++) {
            fours[r + 2 * i] = _mm512_unpacklo_epi64(twos[r + i], twos[r + 2 + i]);
            fours[r + 2 * i + 1] = _mm512_unpackhi_epi64(twos[r + i], twos[r + 2 + i]);
        }
    for (int j = 0; j < 4; j++) {
        parts[j] = _mm512_permutex2var_epi64(fours[j], firsts, fours[j + 4]);
        parts[j + 4] = _mm512_permutex2var_epi64(fours[j], lasts, fours[j + 4]);
    }
}

/* Two weights of each of 16 outputs from byte `p` of their words: the upper nibble's, then the lower's. */
static inline __m512i pair_codes(__m512i words, int p)
{
    const __m512i first = _mm512_srli_epi32(words, 8 * p + 4);
    const __m512i second = p < 3 ? _mm512_slli_epi32(words, 16 - 8 * p) : _mm512_srli_epi32(words, 8);
    return _mm512_permutexvar_epi16(_mm512_mask_blend_epi16(0xAAAAAAAAu, first, second), _mm512_load_si512(CODE16));
}

/* Inputs `from` .. `from + count` of 16 outputs: weights (count / 2, GROUP, 2) and scales (blocks, GROUP). */
static void unpack_group(const Linear *l, int first, int from, int count, int16_t *weights, float *scales)
{
    const size_t stride = (size_t)l->in / 2, blocks = (size_t)l->in / BLOCK;
    const uint8_t *packed = (const uint8_t *)l->data + first * stride + from / 2;
    for (int b = 0; b < count / BLOCK; b++) {
        __m512i parts[8];
        /* As much of the next group, which lies behind this one: a processor doesn't foresee 16 rows at a time. */
        const size_t block = (size_t)from / BLOCK + b, next = (size_t)first + GROUP;
        for (int line = 0; line < GROUP * BLOCK / 2; line += 64)
            __builtin_prefetch((const uint8_t *)l->data + next * stride + block * GROUP * BLOCK / 2 + line);
        __builtin_prefetch(l->scales + next * blocks + block * GROUP);
        transpose_block(packed + b * BLOCK / 2, stride, parts);
#pragma GCC unroll 8
        for (int j = 0; j < 8; j++) {
#pragma GCC unroll 4
            for (int p = 0; p < 4; p++)
                _mm512_store_si512(weights + ((size_t)b * BLOCK + 8 * j + 2 * p) * GROUP, pair_codes(parts[j], p));
        }
        for (int o = 0; o < GROUP; o++)
            scales[b * GROUP + o] = l->scales[(first + o) * blocks + from / BLOCK + b];
    }
}

/* Add up to eight rows' products with `count` inputs of a group to y; x_scales begin at the first of these blocks. */
static inline __attribute__((always_inline)) void integer_tile(
    const int16_t *weights, const float *scales, int count, const int32_t *pairs, const float *x_scales, size_t blocks,
    int rows, float *y, size_t stride)
{
    for (int b = 0; b < count / BLOCK; b++) {
        __m512i sums[TILE];
        for (int r = 0; r < rows; r++)
            sums[r] = _mm512_setzero_si512();
#pragma GCC unroll 4
        for (int pair = 0; pair < BLOCK / 2; pair++) {
            const __m512i codes = _mm512_load_si512(weights + ((size_t)b * BLOCK / 2 + pair) * 2 * GROUP);
            for (int r = 0; r < rows; r++) {
                const __m512i values = _mm512_set1_epi32(pairs[((size_t)b * BLOCK / 2 + pair) * TILE + r]);
                sums[r] = _mm512_dpwssd_epi32(sums[r], codes, values);
            }
        }
        const __m512 scale = _mm512_load_ps(scales + b * GROUP);
        for (int r = 0; r < rows; r++) {
            const __m512 both = _mm512_mul_ps(scale, _mm512_set1_ps(x_scales[r * blocks + b]));
            const __m512 before = _mm512_loadu_ps(y + r * stride);
            _mm512_storeu_ps(y + r * stride, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[r]), both, before));
        }
    }
}

static void integer_group(const Linear *l, int first, const Rounded *x, int rows, float *y)
{
    int16_t weights[GROUP * CHUNK] __attribute__((aligned(64)));
    float scales[GROUP * CHUNK / BLOCK] __attribute__((aligned(64)));
    const int n = l->in;
    for (int r = 0; r < rows; r++)
        memset(y + (size_t)r * l->out + first, 0, sizeof(float) * GROUP);
    for (int from = 0; from < n; from += CHUNK) {
        const int count = n - from < CHUNK ? n - from : CHUNK;
        unpack_group(l, first, from, count, weights, scales);
        for (int r = 0; r < rows; r += TILE) {
            const int32_t *pairs = (const int32_t *)x->values + ((size_t)r / TILE * n + from) / 2 * TILE;
            const float *x_scales = x->scales + ((size_t)r * n + from) / BLOCK;
            float *out = y + (size_t)r * l->out + first;
#define ROWS(count_) \
    case count_: \
        integer_tile(weights, scales, count, pairs, x_scales, (size_t)n / BLOCK, count_, out, l->out); \
        break
            switch (rows - r < TILE ? rows - r : TILE) {
                ROWS(1); ROWS(2); ROWS(3); ROWS(4); ROWS(5); ROWS(6); ROWS(7); ROWS(8);
            }
#undef ROWS
        }
    }
}
#endif

/* Where rounded inputs lie in `room`, which has as many bytes as rows + 1 of them: first those in 16 bits, the last tile's
 * missing rows included, then their scales. */
static inline Rounded rounded_in(float *room, int rows, int n)
{
    const int held = rows <= FEW_ROWS ? rows : (rows + 7) / 8 * 8;
    return (Rounded){(int16_t *)room, room + (size_t)held * n / 2};
}
#endif

/* ---- bfloat16 -------------------------------------------------------------------------------------------------- */

#if defined(__AVX512BF16__)
enum { PAIRED = 32, LINE = 32 }; /* weights of a register, and of a line of the cache */

/* The upper halves of 32 inputs, then the lower ones, for each 32 of a row. */
static void split_inputs(const float *x, size_t count, uint16_t *halves)
{
    for (size_t i = 0; i < count; i += PAIRED) {
        const __m512 a = _mm512_loadu_ps(x + i), b = _mm512_loadu_ps(x + i + 16);
        const __m512bh upper = _mm512_cvtne2ps_pbh(b, a);
        _mm512_storeu_si512(halves + 2 * i, (__m512i)upper);
        const __m512 rest_a = a - _mm512_cvtpbh_ps((__m256bh)_mm512_castsi512_si256((__m512i)upper));
        const __m512 rest_b = b - _mm512_cvtpbh_ps((__m256bh)_mm512_extracti64x4_epi64((__m512i)upper, 1));
        _mm512_storeu_si512(halves + 2 * i + PAIRED, (__m512i)_mm512_cvtne2ps_pbh(rest_b, rest_a));
    }
}

static inline __attribute__((always_inline)) void bf16_tile(
    const uint16_t *weights, const uint16_t *halves, int n, int outputs, int rows, float *y, size_t stride)
{
    __m512 sums[TILE_OUTPUTS][TILE_ROWS];
    for (int o = 0; o < outputs; o++)
        for (int r = 0; r < rows; r++)
            sums[o][r] = _mm512_setzero_ps();
    for (int i = 0; i < n; i += PAIRED)
        for (int half = 0; half < 2; half++) {
            __m512bh inputs[TILE_ROWS];
            for (int r = 0; r < rows; r++)
                inputs[r] = (__m512bh)_mm512_loadu_si512(halves + 2 * ((size_t)r * n + i) + PAIRED * half);
            for (int o = 0; o < outputs; o++) {
                const __m512bh w = (__m512bh)_mm512_loadu_si512(weights + (size_t)o * n + i);
                for (int r = 0; r < rows; r++)
                    sums[o][r] = _mm512_dpbf16_ps(sums[o][r], w, inputs[r]);
            }
        }
    for (int r = 0; r < rows; r++)
        for (int o = 0; o < outputs; o++)
            y[r * stride + o] = _mm512_reduce_add_ps(sums[o][r]);
}

static inline __attribute__((always_inline)) void bf16_outputs(
    const Linear *l, const uint16_t *halves, int rows, int first, int outputs, float *y)
{
    const uint16_t *weights = (const uint16_t *)l->data + (size_t)first * l->in, *next = weights + (size_t)outputs * l->in;
    const size_t lines = (size_t)outputs * l->in / LINE, tiles = (rows + TILE_ROWS - 1) / TILE_ROWS;
    for (int r = 0; r < rows; r += TILE_ROWS) {
        /* A share of the next outputs' weights: a processor doesn't foresee four rows at a time. */
        for (size_t at = lines * (r / TILE_ROWS) / tiles; at < lines * (r / TILE_ROWS + 1) / tiles; at++)
            __builtin_prefetch(next + at * LINE);
        const uint16_t *inputs = halves + (size_t)r * l->in * 2;
        float *out = y + (size_t)r * l->out + first;
        switch (rows - r) {
        case 1: bf16_tile(weights, inputs, l->in, outputs, 1, out, l->out); break;
        case 2: bf16_tile(weights, inputs, l->in, outputs, 2, out, l->out); break;
        case 3: bf16_tile(weights, inputs, l->in, outputs, 3, out, l->out); break;
        default: bf16_tile(weights, inputs, l->in, outputs, TILE_ROWS, out, l->out);
        }
    }
}

#endif

/* ---- the choice ------------------------------------------------------------------------------------------------- */

/* In which form a product takes its inputs; AS_IS and DEALT are those of float32. */
enum { AS_IS, DEALT, INTEGERS_OF_FEW, INTEGERS_OF_MANY, HALVES };

/* Chosen by `fast`, the processor and the number of rows. */
static int form_of(const Linear *l, int rows)
{
#if INTEGERS
    if (l->fast && l->kind == NF4 && rows <= FEW_ROWS)
        return INTEGERS_OF_FEW;
#endif
#if INTEGERS == 2
    if (l->fast && l->kind == NF4 && l->out % GROUP == 0)
        return INTEGERS_OF_MANY;
#endif
#if defined(__AVX512BF16__)
    if (l->fast && l->kind == BF16 && l->in % PAIRED == 0 && rows > TILE_ROWS)
        return HALVES;
#endif
    (void)rows;
    return l->kind == NF4 ? DEALT : AS_IS;
}

/* Bring the rows `first` up to `end` of x (rows, n) into such a form; `room` has as many bytes as rows + 1 of them. */
static void prepare(int form, const float *x, int rows, int n, int first, int end, float *room)
{
    if (form == DEALT)
        deal(x + (size_t)first * n, (size_t)(end - first) * n, room + (size_t)first * n);
#if INTEGERS
    const Rounded rounded = rounded_in(room, rows, n);
    if (form == INTEGERS_OF_FEW)
        round_dealt(x, first, end, n, &rounded);
#endif
#if INTEGERS == 2
    if (form == INTEGERS_OF_MANY)
        round_tiled(x, first, end, n, &rounded);
#endif
#if defined(__AVX512BF16__)
    if (form == HALVES)
        split_inputs(x + (size_t)first * n, (size_t)(end - first) * n, (uint16_t *)room + 2 * (size_t)first * n);
#endif
    (void)rows;
}

/* The outputs `first` up to `end` of all rows, from inputs that are prepared. */
static void outputs(const Linear *l, int form, const float *x, float *room, int rows, int first, int end, float *y)
{
#if INTEGERS
    const Rounded rounded = rounded_in(room, rows, l->in);
#endif
    if (form == DEALT)
        x = room;
    switch (form) {
#if INTEGERS
    case INTEGERS_OF_FEW:
        for (int o = first; o < end; o++)
            integer_output(l, o, &rounded, rows, y);
        break;
#endif
#if INTEGERS == 2
    case INTEGERS_OF_MANY:
        for (int o = first; o < end; o += GROUP)
            integer_group(l, o, &rounded, rows, y);
        break;
#endif
#if defined(__AVX512BF16__)
    case HALVES:
        for (int o = first; o < end; o += TILE_OUTPUTS)
            if (end - o >= TILE_OUTPUTS)
                bf16_outputs(l, (const uint16_t *)room, rows, o, TILE_OUTPUTS, y);
            else
                bf16_outputs(l, (const uint16_t *)room, rows, o, 2, y);
        break;
#endif
    default:
        if (l->kind == NF4 && rows <= TILE_ROWS)
            for (int o = first; o < end; o++)
                one_output(l, o, x, rows, y);
        else if (l->kind == BF16 && rows <= STREAMED_ROWS)
            for (int o = first; o < end; o++)
                bf16_output(l, o, x, rows, y);
        else
            for (int o = first; o < end; o += PANEL)
                panel_outputs(l, x, rows, o, y);
    }
}
